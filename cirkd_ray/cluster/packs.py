"""Packs: trials of a sweep that are trained as cohorts, with one loader and one teacher.

Each stays a trial of Ray Tune's with values, reports and an end of its own. What would start its workers asks
the `Packs` actor instead, which gathers trials as they come and trains those together that can share. One
that its scheduler stops or pauses leaves its pack, and one that goes on joins a pack again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from cirkd_ray.cluster.bridge import POLL_SECONDS
from cirkd_ray.cluster.donors import held_place
from cirkd_ray.cluster.gathering import Gathering, Pack, Waiting, for_workers
from cirkd_ray.cluster.membership import ask_to_join, ask_to_leave, begin, how_ended
from cirkd_ray.cluster.pool import ON_HEAD, RETRIES
from cirkd_ray.cluster.scheduler_state import Fate
from cirkd_ray.cluster.stopping import part_of, stop_is_asked, this_call
from cirkd_ray.cluster.turns import Turns
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import TrainingError, first_line
from cirkd_ray.remote import mirror
from cirkd_ray.report.follow import Tail
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import checkpoint_name
from cirkd_ray.train.outcome import FAILURE, OUTCOME
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import lacks_memory
from cirkd_ray.train.stop import Stopped

PackFunction = Callable[[Sequence[dict[str, Any]], Path, bool], None]
"""`cluster.train.fit_pack`, or a stand-in in a test."""
EVERY = 0.25
"""Seconds between two looks at who waits and who has left."""


class Packs:
    """The actor of one search that trains its trials in packs.

    Args:
        call: of the driver.
        folder: the sweep's.
        gathering: who is trained together.
        total: trials of the sweep.
        together: trains runs as a cohort.
        ordered: a scheduler decides on reports and tells what it has decided.
        holds: members' checkpoints are kept for others that may start from them.
    """

    def __init__(
        self,
        call: str,
        folder: Path,
        gathering: Gathering,
        total: int,
        together: PackFunction,
        ordered: bool,
        holds: bool,
    ) -> None:
        self.call, self.folder, self.total, self.together = call, folder, total, together
        self.gathering, self.ordered, self.holds = gathering, ordered, holds
        self.ended: dict[str, asyncio.Future[Exception | None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.turns, self.decided = Turns(), asyncio.Condition()
        self.stopped = False
        self.leaving: set[str] = set()
        self.paused: set[str] = set()
        self.number = len(list((folder / "packs").glob("*")))

    async def train(self, trial: str, work: dict[str, Any], heard: int) -> dict[str, Exception | None]:
        """Train a trial's run in a pack; `error` is what ended it, if anything did.

        A trial whose process was lost asks again while its run is still under way, one that was paused when
        its run has left or while it is on its way out.

        Args:
            work: as of `Waiting.work`.
            heard: how many of its reports the scheduler knows of.
        """
        if not self.tasks:
            self._begin(self._start_packs())
        while trial in self.leaving and trial in self.ended:
            await asyncio.wait([self.ended[trial]])
        self.paused.discard(trial)
        if trial not in self.ended:
            self.leaving.discard(trial)
            self.ended[trial] = asyncio.get_running_loop().create_future()
            start = work["resume_from"]
            waiting = Waiting(
                trial,
                from_tree(work["spec"]),
                Path(work["directory"]),
                None if start is None else Path(start),
                heard,
            )
            self.gathering.add(waiting, time.monotonic())
        return {"error": await asyncio.shield(self.ended[trial])}

    async def turn(self, trial: str, report: int) -> bool:
        """Wait until the trial's report, by its time, is the next of its pack.

        Returns:
            Whether it is to be told now. Where its pack or the search is over, it will be told by the
            process that goes on with it.
        """
        while self.ordered and not self.turns.may(trial, report, time.monotonic()):
            gone = trial not in self.turns.packs and trial not in self.ended
            if gone or self.stopped:
                return False
            async with self.decided:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.decided.wait(), EVERY)
        return True

    async def hear(self, trial: str, number: int, report: int, fate: Fate) -> None:
        """What the scheduler says of a trial, which is its `number`th.

        Args:
            report: the time of the last report that it has decided on.
            fate: what it has decided.
        """
        self.turns.numbers[trial] = number
        if fate == "stays":
            self.turns.heard[trial] = report
        elif fate == "returns":
            self.turns.returns(trial, report, time.monotonic())
        elif fate != "comes":
            self.turns.leave(trial)
        if fate == "pauses":
            self.paused.add(trial)
        if fate in ("returns", "pauses", "ends"):
            self._ask_to_leave(trial)
        async with self.decided:
            self.decided.notify_all()

    def _ask_to_leave(self, trial: str) -> None:
        pack = self.gathering.pack_of(trial)
        if pack is not None and trial not in self.leaving:
            self.leaving.add(trial)
            with part_of(self.call):
                ask_to_leave(pack.members[trial].directory)

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
        """Start what can start, let join what can, and end what has ended or waits in vain."""
        over = {path.parent.name for path in (self.folder / "trials").glob(f"*/{OUTCOME}")}
        with part_of(self.call):
            self.stopped = stop_is_asked()
            for pack in self.gathering.running:
                for trial, each in [*pack.members.items()]:
                    if how_ended(each.directory) is not None:
                        self._leaves(pack, trial, None)
                    elif trial in over:
                        self.turns.leave(trial)
                        self._ask_to_leave(trial)
            for trial in [t for t in self.gathering.waiting if self.stopped or t in over]:
                del self.gathering.waiting[trial]
                self._end(trial, Stopped("stopped before it began"))
            for pack, each in self.gathering.joining():
                self._enters(pack, each)
                ask_to_join(pack.place, pack.joined, for_workers(each.spec, each.directory, each.resume_from))
                pack.joined += 1
        left = self.total - len(over | self.paused)
        for pack in self.gathering.starting(left, time.monotonic(), self.turns.numbers):
            self._begin(self._train(pack))

    def _enters(self, pack: Pack, each: Waiting) -> None:
        (each.directory / FAILURE).unlink(missing_ok=True)
        begin(each.directory)
        self.turns.begin(each.trial, pack, each.heard)

    async def _train(self, pack: Pack) -> None:
        """One pack, from its start to the end of all its members."""
        self.number += 1
        pack.place = self.folder / "packs" / f"p{self.number}"
        with part_of(self.call):
            for each in pack.members.values():
                self._enters(pack, each)
        work = [each.work() for each in pack.members.values()]
        remote = ray.remote(_train).options(**ON_HEAD, max_retries=RETRIES)
        error: Exception | None = None
        try:
            await remote.remote(self.call, work, pack.place, self.holds, self.together)
        except ray.exceptions.RayTaskError as raised:
            error = raised.cause
        except ray.exceptions.RayError as raised:
            error = TrainingError(f"resources.pack: the pack was lost ({first_line(raised)})")
        with part_of(self.call):
            for trial in [*pack.members]:
                self._leaves(pack, trial, error)
        self.gathering.running.remove(pack)

    def _leaves(self, pack: Pack, trial: str, error: Exception | None) -> None:
        """A member's part is over; `error` ended the pack, unless the run has ended by itself."""
        each = pack.members.pop(trial)
        ended = how_ended(each.directory)
        if ended is not None:
            how = ended.error()
        elif error is None:  # it came when all others had just ended
            return self.gathering.add(each, time.monotonic())
        else:
            how = error
        if lacks_memory(how) and pack.came > 1:
            return self.gathering.add(replace(each, alone=True), time.monotonic())
        if ended is None or isinstance(how, Stopped):
            self.turns.leave(trial)
        return self._end(trial, how)

    def _end(self, trial: str, error: Exception | None) -> None:
        ended = self.ended.pop(trial)
        if not ended.done():
            ended.set_result(error)


def _train(
    call: str, work: Sequence[dict[str, Any]], folder: Path, holds: bool, together: PackFunction
) -> None:
    """Train a pack; its members' folders say how they ended."""
    with part_of(call):
        together(work, folder, holds)


class TrainPacked:
    """A `TrainFunction` whose run is trained in a pack; reports come from the files of the run.

    Args:
        packs: the actor.
        holds: as of `Packs`.
    """

    def __init__(self, packs: Any, holds: bool) -> None:
        self.packs, self.holds = packs, holds

    def __call__(
        self,
        spec: RunSpec,
        directory: RunDirectory,
        callbacks: Sequence[UserCallback],
        resume_from: Path | None,
        heard: int = 0,
    ) -> dict[str, Any]:
        """Wait for the run's end and tell its validations after step `heard`, each when it is its turn.

        Raises:
            Exception: what ended the run.
        """
        lines, every = Tail(directory.metrics), spec.train.validate_every
        lines.position = 0
        trial = directory.path.parent.name
        work = Waiting(trial, spec, directory.path, resume_from).work()
        ended = self.packs.train.remote(trial, work, -(-heard // every))
        done, told = False, True
        while not done:
            done = bool(ray.wait([ended], timeout=POLL_SECONDS)[0])
            for row in lines.rows():
                if "miou" not in row or row["step"] <= heard or not told:
                    continue
                heard = int(row["step"])
                while self.holds and not _is_saved(directory, heard):  # it is being written
                    if ray.wait([ended], timeout=0.05)[0]:
                        break
                told = ray.get(self.packs.turn.remote(trial, -(-heard // every)))
                for callback in callbacks if told else ():
                    callback.after_report(run_context=None, metrics=[row], checkpoint=None)
        error = ray.get(ended)["error"]
        mirror.retake(directory.path)
        if error is None and not told:
            error = Stopped("stopped before all was reported")
        if error is not None:
            raise error
        return directory.read_result() or {}

    def hear(self, trial: str, number: int, report: int, fate: Fate) -> None:
        """Pass on what the scheduler says; arguments as of `Packs.hear`."""
        self.packs.hear.remote(trial, number, report, fate)


def _is_saved(directory: RunDirectory, step: int) -> bool:
    """Whether the checkpoint of a step is held for others, or a later one is."""
    name = checkpoint_name(step)
    return any(path.name >= name for path in held_place(directory.checkpoints / name).parent.glob("step_*"))


@contextmanager
def packed(folder: Path, sweep: SweepSpec, places: int, together: PackFunction) -> Iterator[TrainPacked]:
    """What trains a search's trials in packs, for the length of the block.

    Args:
        folder: the sweep's.
        sweep: its space.
        places: packs at a time.
        together: as of `Packs`.
    """
    scheduler, gathering = sweep.scheduler.name, Gathering(sweep.pack, places)
    ordered, holds = scheduler != "none", scheduler == "pbt"
    packs = ray.remote(Packs).options(**ON_HEAD, max_concurrency=1000)
    actor = packs.remote(this_call(), folder, gathering, sweep.trials, together, ordered, holds)
    try:
        yield TrainPacked(actor, holds)
    finally:
        ray.kill(actor)
