"""What takes part in a cohort: runs with all that is theirs, from the start or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cirkd_ray.config import RunSpec
from cirkd_ray.train.distributed import World
from cirkd_ray.train.reporter import Listener, Reporter
from cirkd_ray.train.rundir import RunDirectory

Ended = dict[str, Any] | Exception
"""How a member ended: its result, or why there is none."""


@dataclass(frozen=True)
class Entry:
    """A run that takes part in a cohort.

    Attributes:
        spec: a resolved recipe whose teacher, if any, has weights.
        directory: the run's, seen by all ranks.
        reporter: takes figures and checkpoints.
        listeners: follow the run on the main rank.
        resume_from: a checkpoint to start from where the directory has none, such as another run's.
        asked_to_stop: whether this member is to leave, asked before each of its steps; one rank is enough.
        keeps: keep its last checkpoint in memory, for members that are to start from it.
    """

    spec: RunSpec
    directory: RunDirectory
    reporter: Reporter
    listeners: Sequence[Listener] = ()
    resume_from: Path | None = None
    asked_to_stop: Callable[[], bool] | None = None
    keeps: bool = False


class Joins(Protocol):
    """Where runs come from that join a cohort which is under way."""

    def asked(self) -> bool:
        """Whether there is one; asked before every step, and one rank is enough."""

    def take(self, world: World) -> Sequence[Entry]:
        """Those that have come since the last time; called on all ranks at the same step, with one answer."""
