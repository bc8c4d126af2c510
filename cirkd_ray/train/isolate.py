"""Whose fault an error is: that of one member of a cohort, which ends alone, or that of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cirkd_ray.errors import ConfigError, TrainingError, TransientError, WeightsError
from cirkd_ray.train.distributed import World
from cirkd_ray.train.stop import Interrupted, Stopped

T = TypeVar("T")
ALIKE = (ConfigError, TrainingError, WeightsError, Stopped)
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
        alone = isinstance(error, Interrupted) or not isinstance(error, ALIKE)
        if isinstance(error, TransientError) or (world.size > 1 and alone):
            raise
        return error
