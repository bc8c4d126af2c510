"""Machines that are about to be taken away: looking for the notice, and writing checkpoints in time.

Training goes on until the machine is gone. So a checkpoint is written at the notice, and again whenever half
of the time that was left then is over: of a notice of any length, a few seconds are lost in the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

UNKNOWN = 120.0
"""Seconds that a machine is taken to have whose notice names no end, as Ray Train takes it, too."""


@dataclass(frozen=True)
class Notice:
    """That machines of a run are about to be taken away.

    Attributes:
        ranks: the workers on them.
        end: when, in seconds since 1970; None where that is not known.
    """

    ranks: tuple[int, ...]
    end: float | None

    def text(self, now: float) -> str:
        """What to say."""
        several = len(self.ranks) > 1
        whose = f"worker{'s' if several else ''} {', '.join(map(str, self.ranks))}"
        when = "soon" if self.end is None else f"in {max(0.0, self.end - now):.0f} s"
        return f"WARNING: the machine{'s' if several else ''} of {whose} will be taken away {when}"


class Preemption:
    """A `Duty`: looks for a notice, and has checkpoints written while one stands.

    Args:
        look: the notice that stands, the same on all ranks; called on all of them at once.
        every: seconds between two looks.
        save: writes a checkpoint of the last step; hears of a notice what it is, once.
        clock: seconds since 1970, for tests.
    """

    def __init__(
        self,
        look: Callable[[], Notice | None],
        every: float,
        save: Callable[[str | None], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.look, self.every, self.save, self.clock = look, every, save, clock
        self.next, self.end = clock() + every, 0.0
        self.known: tuple[int, ...] = ()

    def due(self) -> bool:
        """Whether it is time for the next look, by this rank's clock."""
        return self.clock() >= self.next

    def act(self) -> None:
        """Look; write a checkpoint where a notice stands whose machine is still there."""
        notice, now = self.look(), self.clock()
        left = 0.0
        if notice is not None:
            new = notice.ranks != self.known
            if new:
                self.known, self.end = notice.ranks, now + UNKNOWN if notice.end is None else notice.end
            left = self.end - now
            if new or left > 0:
                self.save(f"{notice.text(now)}: a checkpoint is written" if new else None)
        self.next = self.clock() + max(self.every, left / 2)
