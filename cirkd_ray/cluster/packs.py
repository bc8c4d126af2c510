"""Packs: trials of a sweep that are trained as cohorts, with one loader and one teacher.

Each stays a trial of Ray Tune's with values, reports and an end of its own. What would start its workers asks
the `Packs` actor instead, which gathers trials as they come and trains those together that can share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from cirkd_ray.cluster.bridge import POLL_SECONDS
from cirkd_ray.cluster.pool import ON_HEAD, RETRIES
from cirkd_ray.cluster.stopping import part_of, stop_is_asked, this_call
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import TrainingError, first_line
from cirkd_ray.remote import mirror
from cirkd_ray.report.follow import Tail
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.outcome import OUTCOME
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import lacks_memory
from cirkd_ray.train.stop import Stopped

PacksFunction = Callable[..., Sequence[dict[str, Any] | Exception]]
"""`cluster.train.fit_cohort`, or a stand-in in a test."""
EVERY = 0.5
"""Seconds between two looks at who waits."""
PATIENCE = 120.0
"""Seconds without a new trial after which a pack starts although more could come."""


@dataclass(frozen=True)
class Waiting:
    """A trial that wants to be trained; `alone` where there was too little memory beside others."""

    trial: str
    spec: RunSpec
    directory: Path
    alone: bool = False


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
    running: list[list[Waiting]] = field(default_factory=list)
    since: float = 0.0

    def add(self, trial: Waiting, now: float) -> None:
        """It waits from now on."""
        self.waiting[trial.trial], self.since = trial, now

    def starting(self, left: int, now: float) -> list[list[Waiting]]:
        """The packs that start now.

        Args:
            left: trials of the sweep that have not ended.
            now: in seconds, on the clock of `add`.
        """
        found = []
        while self.waiting and len(self.running) < self.places:
            here = len(self.waiting) + sum(map(len, self.running))
            whole = here >= min(self.size * self.places, left) or now - self.since >= PATIENCE
            together = {name: each.spec for name, each in self.waiting.items() if not each.alone}
            groups = [[name] for name, each in self.waiting.items() if each.alone]
            if whole or len(together) >= self.size:
                groups += [group[: self.size] for group in cohorts_of(together)]
            ready = (g for g in groups if whole or len(g) == self.size or self.waiting[g[0]].alone)
            group = next(ready, None)
            if group is None:
                break
            self.running.append([self.waiting.pop(name) for name in group])
            found.append(self.running[-1])
        return found


class Packs:
    """The actor of one search that trains its trials in packs.

    Args:
        call: of the driver.
        folder: the sweep's.
        size, places: as of `Gathering`.
        total: trials of the sweep.
        together: trains runs as a cohort.
    """

    def __init__(
        self,
        call: str,
        folder: Path,
        size: int,
        places: int,
        total: int,
        together: PacksFunction,
    ) -> None:
        self.call, self.folder, self.total, self.together = call, folder, total, together
        self.gathering = Gathering(size, places)
        self.ended: dict[str, asyncio.Future[Exception | None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.number = len(list((folder / "packs").glob("*")))

    async def train(self, trial: str, spec: dict[str, Any], directory: str) -> dict[str, Exception | None]:
        """Train a trial's run in a pack; `error` is what ended it, if anything did.

        A trial whose process was lost asks again while its run is still under way.
        """
        if not self.tasks:
            self._begin(self._start_packs())
        if trial not in self.ended:
            self.ended[trial] = asyncio.get_running_loop().create_future()
            self.gathering.add(Waiting(trial, from_tree(spec), Path(directory)), time.monotonic())
        return {"error": await asyncio.shield(self.ended[trial])}

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _start_packs(self) -> None:
        while True:
            with suppress(Exception):  # a head or a disk that is away for a moment ends no search
                self._look()
            await asyncio.sleep(EVERY)

    def _look(self) -> None:
        """Start what can start, and end what waits in vain."""
        over = {path.parent.name for path in (self.folder / "trials").glob(f"*/{OUTCOME}")}
        with part_of(self.call):
            stopped = stop_is_asked()
        for trial in [t for t in self.gathering.waiting if stopped or t in over]:
            del self.gathering.waiting[trial]
            self._end(trial, Stopped("stopped before it began"))
        for pack in self.gathering.starting(self.total - len(over), time.monotonic()):
            self._begin(self._train(pack))

    async def _train(self, pack: list[Waiting]) -> None:
        """One pack, from its start to the end of all its members."""
        self.number += 1
        work = [(each.spec.to_dict(), str(each.directory)) for each in pack]
        remote = ray.remote(_train).options(**ON_HEAD, max_retries=RETRIES)
        found: Sequence[dict[str, Any] | Exception]
        try:
            place = self.folder / "packs" / f"p{self.number}"
            found = await remote.remote(self.call, work, place, self.together)
        except ray.exceptions.RayTaskError as error:
            found = [error.cause] * len(pack)
        except ray.exceptions.RayError as error:
            found = [TrainingError(f"resources.pack: the pack was lost ({first_line(error)})")] * len(pack)
        self.gathering.running.remove(pack)
        for each, how in zip(pack, found, strict=True):
            if lacks_memory(how) and len(pack) > 1:
                again = Waiting(each.trial, each.spec, each.directory, alone=True)
                self.gathering.add(again, time.monotonic())
            else:
                self._end(each.trial, how if isinstance(how, Exception) else None)

    def _end(self, trial: str, error: Exception | None) -> None:
        ended = self.ended.pop(trial)
        if not ended.done():
            ended.set_result(error)


def _train(
    call: str,
    work: Sequence[tuple[dict[str, Any], str]],
    folder: Path,
    together: PacksFunction,
) -> Sequence[dict[str, Any] | Exception]:
    """How the members of a pack ended."""
    runs = [(from_tree(tree), RunDirectory(path)) for tree, path in work]
    place = folder if len(runs) > 1 else runs[0][1].path
    with part_of(call):
        return together(runs, place, leaving=True)


class TrainPacked:
    """A `TrainFunction` whose run is trained in a pack; reports come from the files of the run.

    Args:
        packs: the actor.
    """

    def __init__(self, packs: Any) -> None:
        self.packs = packs

    def __call__(
        self,
        spec: RunSpec,
        directory: RunDirectory,
        callbacks: Sequence[UserCallback],
        resume_from: Path | None,
    ) -> dict[str, Any]:
        """Wait for the run's end and tell its validations.

        Raises:
            Exception: what ended the run.
        """
        lines = Tail(directory.metrics)
        heard = max((int(row["step"]) for row in directory.read_metrics() if "miou" in row), default=0)
        ended = self.packs.train.remote(directory.path.parent.name, spec.to_dict(), str(directory.path))
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([ended], timeout=POLL_SECONDS)
            for row in lines.rows():
                if "miou" in row and row["step"] > heard:
                    heard = int(row["step"])
                    for callback in callbacks:
                        callback.after_report(run_context=None, metrics=[row], checkpoint=None)
        error = ray.get(ended)["error"]
        mirror.retake(directory.path)
        if error is not None:
            raise error
        return directory.read_result() or {}


@contextmanager
def packed(
    folder: Path, size: int, places: int, total: int, together: PacksFunction
) -> Iterator[TrainPacked]:
    """What trains a search's trials in packs, for the length of the block; arguments as of `Packs`."""
    packs = ray.remote(Packs).options(**ON_HEAD, max_concurrency=1000)
    actor = packs.remote(this_call(), folder, size, places, total, together)
    try:
        yield TrainPacked(actor)
    finally:
        ray.kill(actor)
