"""Whose fault an error is: that of one member of a cohort, which ends alone, or that of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cirkd_ray.errors import ConfigError, TrainingError, TransientError, WeightsError
from cirkd_ray.train.distributed import World

T = TypeVar("T")
ALIKE = (ConfigError, TrainingError, WeightsError)
"""Errors that all ranks make at the same place: of settings, of files, and of what ranks have agreed on."""


def isolated(act: Callable[[], T], world: World) -> T | Exception:
    """What `act` returns, or the error that ends a member and leaves its companions as they are.

    One that a fresh start may get over is nobody's own. On several ranks a member can only be left by all at
    the same place: another error may be one rank's alone, whose peers wait for it in an exchange. Then all
    end, and resume from their checkpoints.

    Raises:
        Exception: an error that is not a member's own.
    """
    try:
        return act()
    except Exception as error:
        if isinstance(error, TransientError) or (world.size > 1 and not isinstance(error, ALIKE)):
            raise
        return error
