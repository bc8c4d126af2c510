"""In which order the members of a pack report to the scheduler: by time, then by the trials' numbers.

A cohort does a step of each member before the next, but its members' processes see their files at different
moments. A scheduler that decides on each report when it comes would decide by chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PATIENCE = 120.0
"""Seconds for which others wait for a trial that was given a donor's weights and starts again."""


@dataclass
class Turns:
    """Who may report now.

    Attributes:
        numbers: of the trials, as the scheduler counts them.
        heard: trial -> time of the last report that the scheduler has decided on.
        packs: trial -> the pack that it is in, or will be in again by a time (in seconds).
    """

    numbers: dict[str, int] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    packs: dict[str, tuple[object, float]] = field(default_factory=dict)

    def begin(self, trial: str, pack: object, heard: int) -> None:
        """A trial is a member of a pack from now on; the scheduler has heard of its report `heard`."""
        self.packs[trial], self.heard[trial] = (pack, float("inf")), heard

    def leave(self, trial: str) -> None:
        """It will not report, or nobody waits for it."""
        self.packs.pop(trial, None)

    def returns(self, trial: str, heard: int, now: float) -> None:
        """It goes on from a donor's report `heard`, soon."""
        if trial in self.packs:
            self.packs[trial], self.heard[trial] = (self.packs[trial][0], now + PATIENCE), heard

    def may(self, trial: str, time: int, now: float) -> bool:
        """Whether nobody of its pack comes before it.

        Args:
            trial: it has a report.
            time: of the report: how many there are of the trial.
            now: in seconds, on the clock of `returns`.
        """
        if trial not in self.packs:
            return False
        if time <= self.heard[trial]:
            return True
        pack, mine = self.packs[trial][0], (time, self.numbers.get(trial, 0))
        return not any(
            other != trial and place is pack and now <= until and self._next(other) < mine
            for other, (place, until) in self.packs.items()
        )

    def _next(self, trial: str) -> tuple[int, int]:
        return self.heard[trial] + 1, self.numbers.get(trial, 0)
