"""A sweep that is interrupted anywhere decides as one that is not; without a cluster.

`Tune` stands for Tune's controller: its calls of a scheduler, and its state on disk, some events old.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from cirkd_ray.cluster.bridge import Pointer, read_pointer
from cirkd_ray.cluster.decisions import LastingScheduler
from cirkd_ray.cluster.scheduler_state import Fate
from cirkd_ray.cluster.search import make_scheduler
from cirkd_ray.sweep.space import SweepSpec

SCHEDULERS = ("asha", "hyperband", "median", "pbt")
STEPS, SAVES_EVERY = 9, 5
RATES = (0.012, 0.016, 0.010, 0.020, 0.013, 0.018, 0.011, 0.017)


class Killed(Exception):
    """The process that decides is gone."""


@dataclass
class Run:
    """A trial's folder: (generation, step, rate) of each line, and what each generation started from."""

    rows: list[tuple[int, int, float]] = field(default_factory=list)
    parents: list[tuple[str, int] | None] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@dataclass
class Disk:
    """What outlives a process: the trials' folders, Tune's state, and what became of each trial."""

    folder: Path
    runs: dict[str, Run] = field(default_factory=dict)
    saved: list[tuple[str, str, dict[str, Any], Any, dict[str, Any]]] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    lasting: bool = True

    def checkpoint(self, trial: str, generation: int, step: int) -> tune.Checkpoint:
        """Tune's pointer to a held checkpoint, which is there as well."""
        held = f"{trial}/g{generation}/donors/step_{step:08d}"
        (self.folder / "trials" / held).mkdir(parents=True, exist_ok=True)
        place = self.folder / "tune" / trial / f"checkpoint_{generation}_{step}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "pointer.json").write_text(json.dumps(asdict(Pointer(trial, held, step))))
        return tune.Checkpoint(str(place))


class Tune:
    """One process's part of a sweep, until it ends or event `kill` in one of the moments that matter."""

    search_alg = None

    def __init__(self, disk: Disk, scheduler: str, slots: int, kill: tuple[int, str] | None) -> None:
        self.disk, self.slots, self.kill, self.events = disk, slots, kill, 0
        self.trials: list[Trial] = []
        self._pending_trials_list: list[Trial] = []
        self._cached_trial_decisions: dict[str, str] = {}
        self._queued_trial_decisions = self._cached_trial_decisions
        self.missed: dict[str, list[tuple[int, int, float]]] = {}
        spec = SweepSpec.model_validate(
            {
                "recipe": "tiny",
                "parameters": {"rate": {"uniform": [0.0, 1.0]}},
                "scheduler": {"name": scheduler, "reduction_factor": 3.0, "perturb_every": 2},
            }
        )
        inner = make_scheduler(spec, STEPS, 1)
        inner._log_config = False
        self.scheduler: TrialScheduler = inner
        if disk.lasting:
            self.scheduler = LastingScheduler(
                inner, str(disk.folder), 0, bool(disk.saved), self.hear, slots >= len(RATES)
            )
        self.scheduler.set_search_properties("miou", "max")
        self.everything_first = scheduler in ("hyperband", "pbt")
        for name, status, config, latest, last in reversed(disk.saved):  # Tune mixes them up
            trial = self._made(name, dict(config))
            trial.set_status(Trial.PENDING if status == Trial.RUNNING else status)
            if status == Trial.PAUSED:
                trial.set_status(Trial.PENDING)
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = latest
            trial.run_metadata.last_result = dict(last)
            self._add(trial)

    def _made(self, name: str, config: dict[str, Any]) -> Trial:
        return Trial("stub", stub=True, trial_id=name, config=config, _setup_default_resource=False)

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.scheduler.on_trial_add(self, trial)
        if trial.status == Trial.PENDING:
            self._pending_trials_list.append(trial)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> set[Trial]:
        return {trial for trial in self.trials if not trial.is_finished()}

    def _set_trial_status(self, trial: Trial, status: str) -> None:
        trial.set_status(status)

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        trial.set_status(Trial.PAUSED)

    def _schedule_trial_save(self, trial: Trial, result: Any = None) -> Any:
        return self.reported[1] if trial is self.reported[0] else trial.checkpoint

    def stop_trial(self, trial: Trial) -> None:
        if trial.is_finished():
            return
        if trial.status == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, dict(trial.last_result))
        else:
            self.scheduler.on_trial_remove(self, trial)
        trial.set_status(Trial.TERMINATED)
        self.disk.ends[trial.trial_id] = int(trial.last_result["report"])

    def checkpoint(self, force: bool = True) -> None:
        self.disk.saved = [
            (t.trial_id, t.status, t.config, t.latest_checkpoint_result, dict(t.last_result or {}))
            for t in self.trials
        ]

    def hear(self, trial: str, number: int, report: int, fate: Fate) -> None:
        """What the scheduler tells."""

    def choose(self, running: list[Trial]) -> Trial:
        """Whose report comes next: all reports of a round before the next round."""
        return min(running, key=lambda t: (int((t.last_result or {}).get("report", 0)), t.trial_id))

    def fit(self) -> None:
        idle = 0
        while len(self.trials) < len(RATES) or self.get_live_trials():
            self._fill()
            running = [trial for trial in self.trials if trial.status == Trial.RUNNING]
            idle = 0 if running else idle + 1
            assert idle < 5, "all trials wait for each other"
            if not running:
                continue
            self._step(self.choose(running))

    def _fill(self) -> None:
        """As many trials as there is room for."""
        waiting = [t for t in self.trials if t.status == Trial.PENDING]
        running = [t for t in self.trials if t.status == Trial.RUNNING]
        room = self.slots - len(running) - len(waiting)
        while len(self.trials) < len(RATES) and (self.everything_first or room > 0):
            number = len(self.trials)
            self._add(self._made(f"t{number}", {"rate": RATES[number]}))
            room -= 1
        while len([t for t in self.trials if t.status == Trial.RUNNING]) < self.slots:
            trial = self.scheduler.choose_trial_to_run(self)
            if trial is None:
                break
            trial.set_status(Trial.RUNNING)
            self._start(trial)

    def _start(self, trial: Trial) -> None:
        """What a trial's process does: a generation, and the lines that Tune has not seen."""
        run, rate = self.disk.runs.setdefault(trial.trial_id, Run()), trial.config["rate"]
        pointer = read_pointer(trial.checkpoint) if trial.checkpoint else None
        parent = (pointer.trial, pointer.step) if pointer else None
        foreign = parent is not None and parent[0] != trial.trial_id and parent != (run.parents or [None])[-1]
        if not run.parents or foreign or run.rates[-1] != rate:
            run.parents.append(parent)
            run.rates.append(rate)
        step, generation = pointer.step if pointer else 0, len(run.parents) - 1
        self.missed[trial.trial_id] = [row for row in run.rows if row[0] == generation and row[1] > step]

    def _step(self, trial: Trial) -> None:
        """A report: one that Tune has not seen, or the next."""
        run = self.disk.runs[trial.trial_id]
        generation, missed = len(run.parents) - 1, self.missed[trial.trial_id]
        if missed:
            row = missed.pop(0)
        else:
            mine = [row for row in run.rows if row[0] == generation]
            parent = run.parents[-1]
            step = mine[-1][1] if mine else parent[1] if parent else 0
            if step >= STEPS:  # it had nothing left to train when its process started again
                self.stop_trial(trial)
                return
            row = (generation, step + 1, trial.config["rate"])
            run.rows.append(row)
        self.events += 1
        self._dies("before")
        result = {"report": row[1], "step": row[1], "generation": generation, "training_iteration": row[1]}
        result["miou"] = (1 - abs(row[2] - 0.01)) * row[1] / STEPS
        self.reported = trial, self.disk.checkpoint(trial.trial_id, generation, row[1])
        donor = trial.latest_checkpoint_result
        decision = self.scheduler.on_trial_result(self, trial, dict(result))
        trial.update_last_result(dict(result))
        self._dies("decided")
        if trial.latest_checkpoint_result is donor:
            saved = _TrainingResult(self.reported[1], dict(result))
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = saved
        if decision == TrialScheduler.STOP or (trial.status == Trial.RUNNING and row[1] == STEPS):
            self.stop_trial(trial)
        elif decision == TrialScheduler.PAUSE:
            trial.set_status(Trial.PAUSED)
        self._dies("done")
        if self.events % SAVES_EVERY == 0:
            self.checkpoint()

    def _dies(self, moment: str) -> None:
        if self.kill == (self.events, moment):
            raise Killed


def swept(
    folder: Path,
    scheduler: str,
    slots: int,
    kills: tuple[tuple[int, str], ...] = (),
    lasting: bool = True,
    kind: type[Tune] = Tune,
) -> tuple[Disk, int]:
    """A sweep with interruptions, and the number of events of its last process."""
    disk = Disk(folder, lasting=lasting)
    folder.mkdir(parents=True)
    for kill in (*kills, None):
        process = kind(disk, scheduler, slots, kill)
        try:
            process.fit()
        except Killed:
            continue
        return disk, process.events
    raise AssertionError


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_interrupted_sweep_decides_as_an_undisturbed_one(
    tmp_path: Path, scheduler: str, slots: int
) -> None:
    whole, events = swept(tmp_path / "whole", scheduler, slots)
    if scheduler == "pbt":
        assert any(len(run.parents) > 1 for run in whole.runs.values())
    else:
        assert min(whole.ends.values()) < max(whole.ends.values()) == STEPS
    for event in range(1, events, 5):
        moment = ("before", "decided", "done")[event % 3]
        kills = ((event, moment), (3, "decided"))
        disk, _ = swept(tmp_path / f"{event}", scheduler, slots, kills)
        assert (disk.ends, disk.runs) == (whole.ends, whole.runs), kills


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_of_rays_own_decides_differently(tmp_path: Path, scheduler: str) -> None:
    """So that the test above is known to see it."""
    whole, events = swept(tmp_path / "whole", scheduler, 1)
    differ = False
    for event in range(2, events, 12):
        try:
            disk, _ = swept(tmp_path / str(event), scheduler, 1, ((event, "done"),), lasting=False)
        except Exception:
            differ = True
        else:
            differ = differ or (disk.ends, disk.runs) != (whole.ends, whole.runs)
    assert differ
