"""One trial of a sweep: a Tune function around a Train run.

A trial's folder holds one run a *generation*: `g0`, and `g1`, `g2`, ... where PBT gave it a donor's weights
and new values. Each has the run's files and `trial.json`: its values, and the checkpoint it started from.

A trial's process imports no network code: only its workers need that, and it takes seconds and memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune

from cirkd_ray.cluster.bridge import (
    GENERATION_NUMBER,
    TIME,
    BackgroundRun,
    Pointer,
    TrainFunction,
    report,
    restored,
)
from cirkd_ray.cluster.donors import HELD, hold
from cirkd_ray.cluster.latency import LATENCY, latency_ms, measured_figures
from cirkd_ray.cluster.packs import TrainPacked
from cirkd_ray.cluster.stopping import note_stopped, part_of, patient_start, this_call, uploaded_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.applied import differences
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.errors import CheckpointError, ConfigError, StorageError, UserError
from cirkd_ray.files import write_text
from cirkd_ray.remote import mirror
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import checkpoint_of
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.outcome import read_failure, write_failure
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped

GENERATION = "trial.json"


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share; plain values, so that it can be sent to other processes.

    Attributes:
        folder: the sweep's.
        space: the SweepSpec.
        base: the resolved recipe before a trial's own values, its teacher given by weights.
    """

    folder: str
    space: dict[str, Any]
    base: dict[str, Any]


def make_trainable(plan: TrialPlan, train: TrainFunction) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs for every trial of this call."""
    call = this_call()

    def trial(config: dict[str, Any]) -> None:
        with part_of(call):
            run_trial(plan, config, train, tune.get_context().get_trial_id())

    return trial


def run_trial(plan: TrialPlan, config: Mapping[str, Any], train: TrainFunction, trial_id: str) -> None:
    """Train one configuration and report to Tune.

    Raises:
        UserError: the configuration cannot be trained; the folder keeps why, so that a retry ends at once.
    """
    folder = Path(plan.folder) / "trials" / trial_id
    folder.mkdir(parents=True, exist_ok=True)
    failed_before = read_failure(folder)
    if failed_before is not None:
        raise failed_before
    sweep = SweepSpec.model_validate(plan.space)
    directory = None
    try:
        with ExitStack() as held:
            pointer = restored()
            spec, directory, parent = prepare(plan, folder, sweep.tidy(config), pointer, held)
            known = latency_ms(spec, Path(plan.folder) / LATENCY) if measured_figures(sweep) else {}
            reports = Reports(spec, directory, known, holds=sweep.scheduler.name == "pbt")
            heard = pointer.step if pointer else 0
            if isinstance(train, TrainPacked):
                reports.last = heard  # what was missed is told by its pack, when it is its turn
            else:
                reports.tell_missed(heard)
            reports.train(train, parent)
    except Stopped:
        note_stopped(trial_id)
        while True:  # to Tune an end or an error would be this trial's; it is ended with the whole search
            time.sleep(1)
    except UserError as error:
        # What its workers or its values met stays; a cluster without room may have some later.
        # Checkpoints that are damaged can be put right, and so can storage that was waited for in vain.
        lasting = directory is None or read_failure(directory.path) is not None
        if lasting and not isinstance(error, (CheckpointError, StorageError)):
            write_failure(folder, error)
        raise


def prepare(
    plan: TrialPlan,
    folder: Path,
    values: dict[str, Any],
    pointer: Pointer | None,
    held: ExitStack | None = None,
) -> tuple[RunSpec, RunDirectory, Path | None]:
    """The recipe, the run's directory and the donor's checkpoint if any.

    The recipe has the plan's number of workers, also where the trial was begun with another.

    Args:
        plan: the sweep's.
        folder, values: of the trial.
        pointer: what Tune asks it to resume from.
        held: takes what ends with the trial's process.

    Raises:
        ConfigError: a sampled value is not in effect in the recipe that was written.
    """
    settings = SweepSpec.model_validate(plan.space).settings(values)
    spec = from_tree(apply_overrides(plan.base, settings))
    directory, parent = _generation(folder, values, pointer)
    about: dict[str, Any] = {"trial": folder.name, "values": values, "settings": settings}
    about["parent"] = asdict(parent) if parent else None
    if held is not None:
        held.enter_context(uploaded_run(directory, spec))
    with patient_start(directory.path, spec):
        open_directory(directory, spec, resume=True)
        write_text(directory.path / GENERATION, json.dumps(about, indent=2))
    mirror.hand_over(directory.path)
    check_applied(directory.spec(), settings)  # what a reader of run.yaml will see
    check_applied(spec, settings)
    return spec, directory, _donated(folder.parent, parent) if parent else None


def _donated(trials: Path, parent: Pointer) -> Path:
    """A donor's checkpoint: a whole one of that step, where the very one has been damaged since."""
    path = trials / _in_trials(parent.path)
    return checkpoint_of(path.parent, parent.step) or path


def _in_trials(path: str) -> str:
    """A checkpoint's path below the sweep's `trials`, so that it holds where the sweep was moved or copied.

    Earlier versions wrote it in full.
    """
    return path.rpartition("/trials/")[2]


def check_applied(spec: RunSpec, settings: Mapping[str, Any]) -> None:
    """Check that the sampled settings are the ones in effect.

    Raises:
        ConfigError: naming those that are not.
    """
    wrong = differences(spec, settings)
    if wrong:
        raise ConfigError(f"parameters: sampled values are not in effect: {'; '.join(wrong)}")


def _generation(
    folder: Path, values: dict[str, Any], pointer: Pointer | None
) -> tuple[RunDirectory, Pointer | None]:
    """The run to resume, or a new one that starts from another's checkpoint, and that checkpoint."""
    known = sorted(folder.glob("g*/" + GENERATION), key=lambda path: int(path.parent.name[1:]))
    if known:
        last = json.loads(known[-1].read_text())
        parent = Pointer(**last["parent"]) if last["parent"] else None
        foreign = pointer is not None and pointer.trial != folder.name and pointer != parent
        if last["values"] == values and not foreign:
            return RunDirectory(known[-1].parent), parent
    return RunDirectory(folder / f"g{len(known)}"), pointer


class Reports:
    """What a trial reports to Tune: each validation of its run once, in order.

    Args:
        spec: the run's.
        directory: the run's.
        known: figures of the student that are known before it is trained.
        holds: other trials may be given its checkpoints, so these outlive its own need.
    """

    def __init__(
        self, spec: RunSpec, directory: RunDirectory, known: Mapping[str, float], holds: bool
    ) -> None:
        self.directory, self.known, self.holds = directory, dict(known), holds
        self.spec, self.every, self.steps = spec, spec.train.validate_every, spec.train.steps
        self.last, self.silent = 0, True

    def tell(self, row: Mapping[str, Any], path: str | None) -> None:
        """Report a validation and where its checkpoint is."""
        step = int(row["step"])
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
        time = {"steps": self.steps, TIME: -(-step // self.every)}
        time[GENERATION_NUMBER] = int(self.directory.path.name[1:])
        trial = self.directory.path.parent.name
        pointer = Pointer(trial, _in_trials(path), step) if path else None
        report({**numbers, **self.known, **time}, pointer)
        self.last, self.silent = step, False

    def tell_missed(self, heard: int = 0, before: float = math.inf) -> None:
        """Report the validations that the run has written and Tune has not heard of.

        A run is ahead of its reports: when its trial is paused, its sweep is interrupted or a worker dies
        between the two, some are lost. A scheduler that never hears of them would judge the trial later than
        it should.

        Args:
            heard: the step of the last that Tune knows of.
            before: report those of earlier steps.
        """
        self.last = max(self.last, heard)
        for row in self.directory.read_metrics():
            if "miou" in row and self.last < row["step"] < before:
                self.tell(row, self._checkpoint(row["step"]))

    def _is_missed(self) -> bool:
        return any("miou" in row and row["step"] > self.last for row in self.directory.read_metrics())

    def _checkpoint(self, step: int) -> str | None:
        """The checkpoint of a step that was reported by none or another process, if it is there."""
        path = checkpoint_of(self.directory.checkpoints, step)
        if self.holds:
            path = checkpoint_of(self.directory.path / HELD, step) or (path and hold(path))
        return str(path) if path else None

    def train(self, train: TrainFunction, parent: Path | None) -> None:
        """Train and report; report the last line of a run that has nothing left to train.

        Args:
            train: trains the run.
            parent: the donor's checkpoint, if any.
        """
        packed = isinstance(train, TrainPacked)
        if self.directory.read_result() is None or (packed and self._is_missed()):
            options = {"heard": self.last} if packed else {}
            run = BackgroundRun(
                lambda bridge: train(self.spec, self.directory, [bridge], parent, **options),
                self.holds,
                here=packed,
            )
            saved = (0, "")
            for row, path in run.reports():
                step = int(row["step"])
                self.tell_missed(before=step)
                if step >= self.steps:
                    run.join()  # the result is on disk before a scheduler may end the trial
                saved = (step, path) if path else saved  # it comes before the same step's validation
                if "miou" in row and step > self.last and run.error is None:
                    self.tell(row, saved[1] if saved[0] == step else self._checkpoint(step))
            self.tell_missed()
        if self.silent:  # finished before, or started from the last checkpoint of a donor that has finished
            self.tell(_last_line(self.directory), None)


def _last_line(directory: RunDirectory) -> dict[str, Any]:
    """The last validation of a finished run: its own, or its donor's where it had nothing left to train."""
    rows = [row for row in directory.read_metrics() if "miou" in row]
    last: dict[str, Any] = rows[-1] if rows else (directory.read_result() or {})["last"]
    return last
