"""Which trials are trained together: who waits, which packs run, who starts and who joins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirkd_ray.config import RunSpec
from cirkd_ray.remote.copies import address, addressed
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.rundir import RunDirectory

PATIENCE = 120.0
"""Seconds without a new trial after which a pack starts although more could come."""


@dataclass(frozen=True)
class Waiting:
    """A trial that wants to be trained.

    Attributes:
        trial: its id.
        spec: of its run.
        directory: the run's folder.
        resume_from: a checkpoint to start from where that has none.
        heard: how many of its reports the scheduler knows of.
        alone: there was too little memory beside others.
    """

    trial: str
    spec: RunSpec
    directory: Path
    resume_from: Path | None = None
    heard: int = 0
    alone: bool = False

    @property
    def begun(self) -> bool:
        """Whether it goes on from where it was, or from a donor."""
        return self.resume_from is not None or RunDirectory(self.directory).begun()

    def work(self) -> dict[str, Any]:
        """As plain values."""
        start = None if self.resume_from is None else str(self.resume_from)
        return {"spec": self.spec.to_dict(), "directory": str(self.directory), "resume_from": start}


def for_workers(spec: RunSpec, run: Path, start: Path | None) -> dict[str, Any]:
    """What workers are told of a run, on whichever machine: places by their addresses.

    Args:
        spec: of the run.
        run: its folder, as this machine knows it.
        start: a checkpoint to start from where that has none.
    """
    return {
        "spec": addressed(spec.to_dict()),
        "directory": address(run),
        "known_as": str(run),
        "resume_from": None if start is None else address(start),
    }


@dataclass(eq=False)
class Pack:
    """A pack that runs.

    Attributes:
        members: those that have not ended, by trial.
        came: how many have been in it.
        place: its folder, once it has one.
        joined: how many came later.
    """

    members: dict[str, Waiting]
    came: int = 0
    place: Path = Path()
    joined: int = 0

    def __post_init__(self) -> None:
        self.came = len(self.members)

    @property
    def alone(self) -> bool:
        """Whether nobody else may join."""
        return any(member.alone for member in self.members.values())


@dataclass
class Gathering:
    """Which trials start together: a whole pack at once, a smaller one when no more can come.

    Attributes:
        size: members of a pack at most.
        places: packs at a time at most.
        waiting: by trial, in the order in which they came.
        running: the packs.
        since: when the last trial came, in seconds.
    """

    size: int
    places: int
    waiting: dict[str, Waiting] = field(default_factory=dict)
    running: list[Pack] = field(default_factory=list)
    since: float = 0.0

    def add(self, trial: Waiting, now: float) -> None:
        """It waits from now on."""
        self.waiting[trial.trial], self.since = trial, now

    def pack_of(self, trial: str) -> Pack | None:
        """The pack that a trial is in."""
        return next((pack for pack in self.running if trial in pack.members), None)

    def joining(self) -> list[tuple[Pack, Waiting]]:
        """Trials that go on in packs that have room: those that begin anew wait for others that do.

        The cohort goes back to the step of the last; for one that begins anew that is all the way.
        """
        found = []
        for trial, each in [*self.waiting.items()]:
            if each.alone or not each.begun:
                continue
            pack = next((pack for pack in self.running if self._has_room(pack, each)), None)
            if pack is not None:
                pack.members[trial] = self.waiting.pop(trial)
                pack.came += 1
                found.append((pack, each))
        return found

    def _has_room(self, pack: Pack, trial: Waiting) -> bool:
        if pack.alone or not 0 < len(pack.members) < self.size:
            return False
        specs = {name: each.spec for name, each in pack.members.items()}
        return len(cohorts_of({**specs, trial.trial: trial.spec})) == 1

    def starting(self, left: int, now: float, numbers: Mapping[str, int] | None = None) -> list[Pack]:
        """The packs that start now.

        Args:
            left: trials of the sweep that have not ended and do not pause.
            now: in seconds, on the clock of `add`.
            numbers: of the trials, by which they are packed.
        """
        found = []
        order = sorted(self.waiting, key=lambda trial: (numbers or {}).get(trial, 0))
        self.waiting = {trial: self.waiting[trial] for trial in order}
        while self.waiting and len(self.running) < self.places:
            here = len(self.waiting) + sum(len(pack.members) for pack in self.running)
            whole = here >= min(self.size * self.places, left) or now - self.since >= PATIENCE
            together = {name: each.spec for name, each in self.waiting.items() if not each.alone}
            groups = [[name] for name, each in self.waiting.items() if each.alone]
            if whole or len(together) >= self.size:
                groups += [group[: self.size] for group in cohorts_of(together)]
            ready = (g for g in groups if whole or len(g) == self.size or self.waiting[g[0]].alone)
            group = next(ready, None)
            if group is None:
                break
            self.running.append(Pack({name: self.waiting.pop(name) for name in group}))
            found.append(self.running[-1])
        return found
