"""The training loop, read top to bottom: every method, network and data set runs through it.

A cohort is one or more runs that share batches and the teacher's forward pass; one run is the ordinary case.
`Cohort` walks the batches and gives each member its turn. What a member does is in `member`.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import first_line
from cirkd_ray.train.agreement import StopAgreement
from cirkd_ray.train.batches import training_batches
from cirkd_ray.train.build import Run, build_cohort, build_joining, seed_of
from cirkd_ray.train.checkpoint import checkpoint_name
from cirkd_ray.train.cohort import check_cohort
from cirkd_ray.train.distributed import World, broadcast_object
from cirkd_ray.train.entry import Ended, Entry, Joins
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.isolate import isolated
from cirkd_ray.train.member import Member
from cirkd_ray.train.preemption import Notice, Preemption
from cirkd_ray.train.progress import Mark, mark
from cirkd_ray.train.reporter import Listener, Reporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.shared import MicroBatch
from cirkd_ray.train.stop import Interrupted, Stopped, asked
from cirkd_ray.train.underway import Underway
from cirkd_ray.train.validation import ValidationSplit, validation_split


def train(
    spec: RunSpec,
    world: World,
    directory: RunDirectory,
    reporter: Reporter,
    listeners: Sequence[Listener] = (),
    resume_from: Path | None = None,
    asked_to_stop: Callable[[], bool] = asked,
    heartbeat: Heartbeat | None = None,
) -> dict[str, Any]:
    """Train, validate, checkpoint; resume from the directory's newest whole checkpoint if there is one.

    Args:
        spec, directory, reporter, listeners, resume_from: as of `Entry`.
        world: this process among its peers.
        asked_to_stop: asked before every step; one rank is enough.
        heartbeat: notes how far this rank is, for a thread that watches it.

    Returns:
        The result, as it stands in `result.json`; the same on all ranks.

    Raises:
        TrainingError: a loss is not finite.
        UserError: bad data, a disk that stays full and the like, with what to do.
        Stopped: asked to; a checkpoint of the last step is written, unless it is `Interrupted`.
    """
    entry = Entry(spec, directory, reporter, listeners, resume_from)
    (ended,) = train_cohort([entry], world, asked_to_stop, heartbeat)
    if isinstance(ended, Exception):
        raise ended
    return ended


def train_cohort(
    entries: Sequence[Entry],
    world: World,
    asked_to_stop: Callable[[], bool] = asked,
    heartbeat: Heartbeat | None = None,
    notice: Callable[[], Notice | None] | None = None,
    joins: Joins | None = None,
    told: Callable[[Entry, Ended], None] = lambda entry, ended: None,
) -> list[Ended]:
    """Train runs that share batches and a teacher, each as it would train alone.

    A run's figures do not depend on its companions, nor on when they end. Runs at different steps join when
    the one that is behind has caught up.

    Args:
        entries: the runs, each with a folder of its own.
        world, asked_to_stop, heartbeat: as of `train`; the stop is one of all runs.
        notice: looks whether machines are about to be taken away; called on all ranks at once, which get the
            same answer.
        joins: runs that take part later. One that has a companion's checkpoint to start from, which that
            keeps in memory, takes it from there.
        told: hears of each run as soon as it has ended.

    Returns:
        How each ended: a result, the error that ended it alone, or `Stopped` where it was asked to leave;
        first the entries in their order, then those that joined.

    Raises:
        ConfigError: runs that cannot share.
        UserError: an error that is not one member's own, such as unreadable images.
        Stopped: asked to; all that were under way have written a checkpoint of the last step.
    """
    check_cohort({entry.directory.path.name: entry.spec for entry in entries})
    stop_all = StopAgreement(asked_to_stop, world)
    cohort = Cohort(entries, world, heartbeat or Heartbeat(), stop_all, joins, told)
    every = entries[0].spec.cluster.preemption_interval
    if notice is not None and every is not None:
        stop_all.duty = Preemption(notice, every, cohort.save)
    try:
        return cohort.train()
    except BaseException as error:
        cohort.settle(error)  # the first error is the one to tell
        raise


class Cohort:
    """One rank's way through the batches of its members.

    Attributes:
        entries: the runs, in the order in which they came; elsewhere a run is named by its place here.
        members: those that are under way.
        ended: how the others ended.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        world: World,
        heartbeat: Heartbeat,
        stop_all: StopAgreement,
        joins: Joins | None,
        told: Callable[[Entry, Ended], None],
    ) -> None:
        self.world, self.heartbeat, self.stop_all = world, heartbeat, stop_all
        self.joins, self.told, self.joining = joins, told, self._agreement(joins)
        self.entries: list[Entry] = []
        self.members: dict[int, Member] = {}
        self.ended: dict[int, Ended] = {}
        self.stops: dict[int, StopAgreement] = {}
        self.split: ValidationSplit | None = None
        for entry, run in zip(entries, build_cohort([e.spec for e in entries], world), strict=True):
            self._enter(entry, run)
        for place, member in [*self.members.items()]:
            self._attempt(place, partial(member.resume, self.entries[place].resume_from))

    def _agreement(self, joins: Joins | None) -> StopAgreement | None:
        return None if joins is None else StopAgreement(joins.asked, self.world)

    def _enter(self, entry: Entry, run: Run | Exception) -> int:
        """Take a run among the members, unless it could not be built; returns its place."""
        place, timeout = len(self.entries), entry.spec.cluster.storage_timeout
        self.entries.append(entry)
        told = Underway(
            entry.directory, entry.listeners, self.world, self.heartbeat, timeout, self.stop_all.asked
        )
        if isinstance(run, Exception):
            told.message(f"failed before its first step: {first_line(run)}")
            self.ended[place] = run
            self.told(entry, run)
            return place
        if entry.asked_to_stop is not None:
            self.stops[place] = StopAgreement(entry.asked_to_stop, self.world)
        self.split = self.split or validation_split(run, self.stop_all, told.patience)
        self.members[place] = Member(run, told, entry.reporter, self.split, entry.keeps)
        return place

    def train(self) -> list[Ended]:
        """Validations that are due, then all steps that are left of each member.

        Raises:
            Stopped: where all were asked to stop, unless none could, each for a reason of its own.
        """
        for place, member in [*self.members.items()]:
            self._attempt(place, member.catch_up)
        self._finish()
        while self.members:
            self._walk()
        stopped = [ended for ended in self.ended.values() if isinstance(ended, Stopped)]
        if self.stop_all.agreed:
            for each in [e for e in stopped if isinstance(e, Interrupted)] or stopped[-1:]:
                raise each
        return [self.ended[place] for place in sorted(self.ended)]

    def settle(self, error: BaseException) -> None:
        """Wait until no checkpoint is being written any more; how that ends is not told."""
        for member in self.members.values():
            with suppress(Exception):
                member.reporter.settle()
            member.told.close(error)

    def _walk(self) -> None:
        """The steps from where the last member is, as long as one has a turn."""
        leader = next(iter(self.members.values()))
        first, patience = leader.run, leader.told.patience
        shared, train, seed = first.shared, first.spec.train, first.spec.seed
        start = min(member.done for member in self.members.values())
        end = max(member.spec.train.steps for member in self.members.values())
        batches = training_batches(first, start, end, patience)
        del leader, first  # its memory is free when it has ended
        waiting_since, idle_since = time.perf_counter(), mark(self.world.device)
        for step in range(start, end):
            if self.stop_all(step):
                return self._stop()
            for place in [p for p in self.members if p in self.stops and self.stops[p](step)]:
                self._end(place, self._attempt(place, self.members[place].stop))
            if self.members and self._join(step):
                return None
            turn = {place: member for place, member in self.members.items() if member.done == step}
            if not turn:
                return None
            for member in turn.values():
                member.open()
            self.heartbeat.note("data", step + 1)
            try:
                micro_batches = [shared(batch, len(turn)) for batch in islice(batches, train.accumulate)]
            except Interrupted:
                if self.world.size > 1:
                    raise
                return self._stop()
            waited = time.perf_counter() - waiting_since
            self.heartbeat.note("step", step + 1)
            if len(turn) > 1 and any(member.run.teacher for member in turn.values()):
                torch.manual_seed(seed_of(seed, 2, step, self.world.rank))
                self._teach(turn, micro_batches)
            self._take_turns(turn, micro_batches, waited)
            waiting_since = time.perf_counter()
            idle_since = self._wait(idle_since, [p for p in self.members if p not in turn])
        return None

    def _join(self, step: int) -> bool:
        """Take in the runs that have come, if any; each is at a step of its own."""
        if self.joins is None or self.joining is None or not self.joining(step):
            return False
        self.joining, begun, before = self._agreement(self.joins), mark(self.world.device), [*self.members]
        self.heartbeat.note("checkpoint", step)
        for entry in self.joins.take(self.world):
            beside = next(iter(self.members.values())).run
            place = self._enter(entry, build_joining(entry.spec, beside))
            if (member := self.members.get(place)) is not None:
                state = self._kept(entry.resume_from)
                self._attempt(place, partial(member.resume, entry.resume_from, state))
            if place in self.members:
                self._attempt(place, self.members[place].catch_up)
        self._finish()
        self._wait(begun, before)
        return True

    def _teach(self, turn: dict[int, Member], micro_batches: Sequence[MicroBatch]) -> None:
        """The teacher's maps for all; no time of members that learn from the labels alone."""
        begun = mark(self.world.device)
        for micro_batch in micro_batches:
            micro_batch.taught()
        away = begun, mark(self.world.device)
        for member in turn.values():
            if member.run.teacher is None and member.window is not None:
                member.window.away.append(away)

    def _take_turns(
        self, turn: dict[int, Member], micro_batches: Sequence[MicroBatch], waited: float
    ) -> None:
        """A step of each of these members, one after the other; what one takes is not the others' time."""
        for place, member in turn.items():
            if place not in self.members:  # ended by what was due while another one validated
                continue
            begun = mark(self.world.device) if len(turn) > 1 else 0.0
            self._attempt(place, partial(member.step, micro_batches, waited))
            if len(turn) > 1:
                away = begun, mark(self.world.device)
                for other in turn.values():
                    if other is not member and other.window is not None:
                        other.window.away.append(away)
        self._finish()

    def _kept(self, checkpoint: Path | None) -> dict[str, Any] | None:
        """What a companion's checkpoint holds, where that is kept in memory; on all ranks alike."""
        state, step = None, None if checkpoint is None else checkpoint.name
        for member in self.members.values():
            kept = member.kept
            if checkpoint is not None and kept is not None and checkpoint_name(kept["step"]) == step:
                state = kept if member.directory.path == checkpoint.parent.parent else state
        found: dict[str, Any] | None = broadcast_object(state, self.world)
        return found

    def _wait(self, since: Mark, places: Sequence[int]) -> Mark:
        """What has passed since then was not these members' time; returns the present."""
        now = mark(self.world.device)
        for place in places:
            member = self.members.get(place)
            if member is not None and member.window is not None:
                member.window.away.append((since, now))
        return now

    def _finish(self) -> None:
        """The results of members whose steps are all done."""
        for place, member in [*self.members.items()]:
            if member.complete:
                self._end(place, self._attempt(place, member.finish))

    def save(self, why: str | None) -> None:
        """Write checkpoints of all members between two steps, or while one validates, and go on.

        Args:
            why: to be told first.
        """
        for place, member in [*self.members.items()]:
            self._attempt(place, partial(member.save, why))

    def _stop(self) -> None:
        """Checkpoints of all members."""
        self.stop_all.agreed = True
        for place, member in [*self.members.items()]:
            self._end(place, self._attempt(place, member.stop))

    def _attempt(self, place: int, act: Callable[[], Any]) -> Any:
        """What a member's part of the work returns, or the error that ends it alone."""
        found = isolated(act, self.world)
        if isinstance(found, Exception):
            self._end(place, found)
        return found

    def _end(self, place: int, ended: Ended) -> None:
        """A member is over; its memory is free for the others."""
        member = self.members.pop(place, None)
        if member is None:
            return
        self.ended[place] = ended
        if isinstance(ended, Exception):
            with suppress(Exception):  # the first error is the one to tell
                member.reporter.settle()
            if self.members and not isinstance(ended, Stopped):
                # As far as that is possible: its disk may be the reason.
                member.told.patience.say(
                    f"failed at step {member.done + 1}: {first_line(ended)}; the others go on"
                )
                traceback.clear_frames(ended.__traceback__)
        member.told.close(ended)
        self.told(self.entries[place], ended)
        del member
        gc.collect()
        if self.world.device.type == "cuda" and self.members:
            torch.cuda.empty_cache()
