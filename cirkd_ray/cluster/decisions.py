"""A scheduler of Ray Tune that decides as if its sweep had never been interrupted.

Tune restores the trials of a sweep and their searcher, but gives them a scheduler that has seen nothing: no
rung, bracket, population or median. `LastingScheduler` writes down what a scheduler has seen after each
report, and takes it up when the sweep is resumed. Tune's own state on disk is up to ten seconds older. So
trials report again what Tune may not have seen. What the scheduler has seen is not counted twice, and a trial
that it had stopped, paused or given a donor's weights is put back into that state. The same holds for a trial
whose process is lost, which Tune's schedulers take for a new one.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from cirkd_ray.cluster.bridge import GENERATION_NUMBER, TIME, read_pointer
from cirkd_ray.cluster.donors import release
from cirkd_ray.cluster.scheduler_state import (
    STATE,
    Fate,
    Hear,
    Record,
    read_records,
    read_scheduler,
    write_state,
)

_CLOCKS = ("training_iteration", "time_total_s", "timesteps_total")


class LastingScheduler(TrialScheduler):  # type: ignore[misc]
    """Hands everything to another scheduler and keeps what that has seen in the sweep's folder.

    Args:
        scheduler: a new one of Ray's.
        folder: the sweep's.
        seed: each random choice is a function of it, the trial and the time.
        resumed: take up what the folder holds; else it is deleted.
        hear: is told of each decision as soon as it is taken.
        fits: all trials of the sweep run at a time, so that none is paused to make room.
    """

    def __init__(
        self,
        scheduler: TrialScheduler,
        folder: str,
        seed: int,
        resumed: bool,
        hear: Hear | None = None,
        fits: bool = False,
    ) -> None:
        super().__init__()
        self.hear, self.fits = hear, fits
        self.scheduler, self.folder, self.seed = scheduler, Path(folder), seed
        if not resumed:
            (self.folder / STATE).unlink(missing_ok=True)
        self.records, self._asleep = read_records(self.folder)
        self._trials: dict[str, Trial] = {}
        self._first: list[Trial] = []
        self._depth, self._turned = 0, False

    @property
    def metric(self) -> Any:
        """The scheduler's."""
        return self.scheduler.metric

    @property
    def supports_buffered_results(self) -> bool:
        """Each report is decided on when it comes."""
        return False

    def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
        """Handed on."""
        return bool(self.scheduler.set_search_properties(metric, mode, **spec))

    def debug_string(self) -> str:
        """Handed on."""
        return str(self.scheduler.debug_string())

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new trial, one of a restored sweep, or one whose process was lost and that starts again."""
        record = self.records.get(trial.trial_id)
        if record is None:
            self._wake(tune_controller)
            number = 1 + max((known.number for known in self.records.values()), default=-1)
            record = self.records[trial.trial_id] = Record(number)
            self._add(tune_controller, trial, record)
        elif self._asleep:
            _adopt(trial, record)
        else:
            self._sort(tune_controller.get_trials())
            if record.paused:
                tune_controller._set_trial_status(trial, Trial.PAUSED)
        self._trials[trial.trial_id] = trial
        self._tell(trial, 0, "comes")

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """The scheduler's decision; of a report that it has seen, none but to stop."""
        record = self.records[trial.trial_id]
        time = (int(result.get(GENERATION_NUMBER, 0)), int(result[TIME]))
        if time <= record.seen:
            stopped = record.decision == TrialScheduler.STOP
            if not stopped:
                self._tell(trial, time[1], "stays")
            return str(TrialScheduler.STOP if stopped else TrialScheduler.CONTINUE)
        values = trial.config
        with self._event(), self._drawn(record.number, *time):
            decision = str(self.scheduler.on_trial_result(tune_controller, trial, self._needed(result)))
            if decision == TrialScheduler.PAUSE and isinstance(self.scheduler, PopulationBasedTraining):
                decision = TrialScheduler.CONTINUE if self.fits else decision
            record.seen, record.decision = time, decision
            record.paused = decision == TrialScheduler.PAUSE or trial.status == Trial.PAUSED
            record.result = {k: v for k, v in result.items() if isinstance(v, int | float | str)}
            exchanged = trial.config is not values
            record.exchange = (trial.config, trial.latest_checkpoint_result) if exchanged else None
        self._tell_decision(trial, record)
        return decision

    def _tell_decision(self, trial: Trial, record: Record) -> None:
        """One that is stopped has ended when the scheduler has been told so as well."""
        if record.exchange is not None and self.fits:
            self._tell(trial, int(record.exchange[1].metrics[TIME]), "returns")
        elif record.decision != TrialScheduler.STOP:
            self._tell(trial, record.seen[1], "pauses" if record.paused else "stays")

    def _tell(self, trial: Trial, time: int, fate: Fate) -> None:
        if self.hear is not None:
            self.hear(trial.trial_id, self.records[trial.trial_id].number, time, fate)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """It has come to its end, or is stopped while it runs."""
        if self._ends(trial):
            with self._event():
                self.scheduler.on_trial_complete(tune_controller, trial, self._needed(result))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """It is stopped while it waits."""
        if self._ends(trial):
            with self._event():
                self.scheduler.on_trial_remove(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """It has failed for good. One that starts again has the status of an error already."""
        if trial.status != Trial.ERROR and self._ends(trial):
            self.records[trial.trial_id].failed = True
            with self._event():
                self.scheduler.on_trial_error(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """First those that ran when the sweep was interrupted, then as the scheduler chooses."""
        self._wake(tune_controller)
        if self._turned:  # so that Tune knows of a trial on disk before that can report
            _whole(tune_controller).checkpoint(force=True)
            self._turned = False
        self._first = [trial for trial in self._first if trial.status == Trial.PENDING]
        return self._first[0] if self._first else self.scheduler.choose_trial_to_run(tune_controller)

    def _wake(self, tune_controller: Any) -> None:
        """Take up what was seen before, now that all restored trials are there."""
        if not self._asleep:
            return
        seen, self._asleep = self._asleep, b""
        self.records = {name: record for name, record in self.records.items() if name in self._trials}
        if not self.records:  # Tune could not restore the sweep and has begun it anew
            return
        read_scheduler(self.scheduler, seen, self.folder, self._trials)
        whole = _whole(tune_controller)
        for decisions in (whole._cached_trial_decisions, whole._queued_trial_decisions):
            decisions.clear()  # they were not carried out; the records say what to do
        live = [
            (trial, self.records[name]) for name, trial in self._trials.items() if not trial.is_finished()
        ]
        for trial, record in live:
            if record.failed:
                self._add(tune_controller, trial, record)
            elif record.ended or record.decision == TrialScheduler.STOP:
                if trial.status == Trial.PENDING:
                    tune_controller._set_trial_status(trial, Trial.RUNNING)
                tune_controller.stop_trial(trial)
        began = [trial for trial, record in live if record.seen >= (0, 0) and trial.status == Trial.PENDING]
        self._first = began
        self._sort(began)
        self._sort(tune_controller.get_trials())
        self._sort(whole._pending_trials_list)
        whole._pending_trials_list.sort(key=lambda trial: trial not in began)

    def _sort(self, trials: list[Trial]) -> None:
        """In the order in which they came at first."""
        trials.sort(key=lambda trial: self.records[trial.trial_id].number)

    def _add(self, tune_controller: Any, trial: Trial, record: Record) -> None:
        self._turned, record.ended, record.failed = True, False, False
        with self._event(), self._drawn(record.number):
            self.scheduler.on_trial_add(tune_controller, trial)

    def _ends(self, trial: Trial) -> bool:
        """Whether the scheduler has not been told of its end; it is now."""
        record = self.records[trial.trial_id]
        new, record.ended, self._turned = not record.ended, True, True
        self._tell(trial, record.seen[1], "ends")
        return new

    def _needed(self, result: dict[str, Any]) -> dict[str, Any]:
        """What schedulers look at; of some, all of it is written with every report."""
        return {key: result[key] for key in (TIME, self.metric, *_CLOCKS) if key in result}

    @contextmanager
    def _drawn(self, *key: int) -> Iterator[None]:
        """Random choices are a function of the seed and `key`."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (Ray draws from it)
        seed = zlib.crc32(repr((self.seed, *key)).encode())
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002

    @contextmanager
    def _event(self) -> Iterator[None]:
        """Write everything down at the end of what may contain other events."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0:
            write_state(self.folder, self.records, self.scheduler)
            if isinstance(self.scheduler, PopulationBasedTraining):
                self._release(self.scheduler)

    def _release(self, population: PopulationBasedTraining) -> None:
        """Delete checkpoints that no living trial of the population points to."""
        found = []
        for trial, state in population._trial_state.items():
            if not trial.is_finished():
                found += [trial.checkpoint, state.last_checkpoint]
        pointers = [read_pointer(checkpoint) for checkpoint in found if checkpoint is not None]
        at = {
            name: (record.seen[0], int(record.result["step"]))
            for name, record in self.records.items()
            if record.result
        }
        release(self.folder / "trials", at, [Path(pointer.path) for pointer in pointers])


def _adopt(trial: Trial, record: Record) -> None:
    """Put a trial that Tune restores, perhaps as it was some seconds before, into the state it was in."""
    if trial.is_finished():
        return
    if record.result:
        trial.update_last_result(dict(record.result))
    if record.exchange is not None:
        values, donor = record.exchange
        trial.set_config(values)
        trial.run_metadata.checkpoint_manager._latest_checkpoint_result = donor
    if record.paused:
        trial.set_status(Trial.PAUSED)


def _whole(tune_controller: Any) -> Any:
    """The controller behind the part of it that schedulers are shown."""
    return getattr(tune_controller, "_tune_controller", tune_controller)
