"""The training loop, read top to bottom: every method, network and data set runs through it.

`TrainingLoop.resume` loads the last checkpoint, `train` does the steps that are left, and `_report` writes
metrics, validates and saves a checkpoint where they are due.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.train.agreement import StopAgreement
from cirkd_ray.train.batches import training_batches
from cirkd_ray.train.best import BestStudent
from cirkd_ray.train.build import Run, build_run, seed_of
from cirkd_ray.train.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    remove_partial_checkpoints,
)
from cirkd_ray.train.distributed import (
    World,
    average_batchnorm_statistics,
    barrier,
    broadcast_text,
    mean_over_ranks,
)
from cirkd_ray.train.finite import check_finite
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.progress import ReportWindow, RunProgress
from cirkd_ray.train.rehearsal import enough_values
from cirkd_ray.train.reporter import Listener, Reporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.snapshot import HostCopy, Snapshot
from cirkd_ray.train.state import load_state, refuse_damaged, state_of
from cirkd_ray.train.stop import Interrupted, Stopped, asked
from cirkd_ray.train.underway import Underway
from cirkd_ray.train.validation import (
    Scores,
    score_teacher,
    tell_better_student,
    validation_loader,
)


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
        spec: a resolved recipe whose teacher, if any, has weights.
        world: this process among its peers.
        directory: the run's directory, seen by all ranks.
        reporter: takes figures and checkpoints.
        listeners: follow the run on the main rank.
        resume_from: a checkpoint to start from where the directory has none, such as another run's.
        asked_to_stop: asked before every step; one rank is enough.
        heartbeat: notes how far this rank is, for a thread that watches it.

    Returns:
        The result, as it stands in `result.json`; the same on all ranks.

    Raises:
        TrainingError: a loss is not finite.
        UserError: bad data, a disk that stays full and the like, with what to do.
        Stopped: asked to; a checkpoint of the last step is written, unless it is `Interrupted`.
    """
    timeout = spec.cluster.storage_timeout
    told = Underway(directory, listeners, world, heartbeat or Heartbeat(), timeout, asked_to_stop)
    loop = TrainingLoop(build_run(spec, world), told, reporter)
    loop.resume(resume_from)
    loop.score_teacher()
    try:
        return loop.train(StopAgreement(asked_to_stop, world))
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            reporter.settle()
        raise


class TrainingLoop:
    """One rank's way through a run."""

    def __init__(self, run: Run, told: Underway, reporter: Reporter) -> None:
        self.run, self.spec, self.world = run, run.spec, run.world
        self.told, self.directory, self.reporter = told, told.directory, reporter
        self.progress = RunProgress()
        self.copy_to_host = HostCopy()
        self.started_from: Path | None = None
        self.best = BestStudent(run, told, validation_loader(run, told.patience))
        self.teacher: Scores | None = None

    def resume(self, started_from: Path | None = None) -> None:
        """Load the newest whole checkpoint, which the main rank chooses; without one start at step 0."""
        self.started_from = started_from
        path = self._newest_checkpoint(self.told.message)
        if path:
            self.progress = RunProgress(**load_state(self.run, read_checkpoint(Path(path))))
            self._take_validation(Path(path))
        else:
            refuse_damaged(self.directory.checkpoints, self.world)
        if self.world.is_main:
            remove_partial_checkpoints(self.directory.checkpoints)
            step, validated = self.progress.step, not self.progress.due
            self.told.patience.write(lambda: self.directory.rewind(step, validated))
        self.told.start(self.spec.to_dict(), self.progress.step)
        for note in self.run.notes:
            self.told.message(note)
        if path:
            self.told.message(f"continuing at step {self.progress.step} from {path}")
        before, self.progress.workers = self.progress.workers, self.world.size
        if before not in (0, self.world.size):
            self.told.message(
                f"WARNING: workers: {before} before, {self.world.size} now: figures will differ a little "
                "from those of an undisturbed run"
            )

    def score_teacher(self) -> None:
        """Score the teacher on the validation split, if that is not known yet."""
        best = self.best
        self.teacher = score_teacher(self.run, self.told, best.batches, best.measured_on, self.progress.step)

    def _newest_checkpoint(self, warn: Callable[[str], None]) -> str:
        """The newest whole checkpoint that the main rank finds, on every rank; "" if there is none."""
        path = ""
        if self.world.is_main:
            path = str(newest_checkpoint(self.directory.checkpoints, warn) or self.started_from or "")
        return broadcast_text(path, self.world)

    def _take_validation(self, checkpoint: Path) -> None:
        """The scores of the validation after that checkpoint, where the run that it is of finished it."""
        found = ""
        if self.world.is_main and self.progress.due:
            done = RunDirectory(checkpoint.parent.parent).read_validation(self.progress.step)
            found = json.dumps(done) if done else ""
        if found := broadcast_text(found, self.world):
            self.progress = replace(self.progress, **json.loads(found), due={})

    def train(self, stops: Callable[[int], bool]) -> dict[str, Any]:
        """A validation that is due, all steps that are left, then the result.

        Raises:
            Stopped: where `stops` says so before a step.
        """
        train = self.spec.train
        if self.progress.due:
            self.told.message(f"the validation of step {self.progress.step} is due")
            self._tell(self.progress.step, self.progress.due, validates=True)
        batches = training_batches(self.run, self.progress.step, self.told.patience)
        window, waiting_since = ReportWindow.unpacked(self.progress.window, self.world), time.perf_counter()
        self.progress.window = {}
        saved = self.progress.step
        self.run.step.distiller.train()
        for step in range(self.progress.step, train.steps):
            if stops(step):
                self._stop(step, window, saved == step)
            self.told.heartbeat.note("data", step + 1)
            try:
                micro_batches = list(islice(batches, train.accumulate))
            except Interrupted:
                if self.world.size > 1:
                    raise
                self._stop(step, window, saved == step)
            waited = time.perf_counter() - waiting_since
            self.told.heartbeat.note("step", step + 1)
            torch.manual_seed(seed_of(self.spec.seed, 2, step, self.world.rank))
            with enough_values(self.spec, len(micro_batches[0].indices)):
                window.add(self.run.step(step, micro_batches), waited)
            done = step + 1
            validates = done % train.validate_every == 0 or done == train.steps
            saves = done % train.checkpoint_every == 0 or done == train.steps
            if validates or saves or done % train.log_every == 0:
                self._report(done, window, validates, saves)
                window = ReportWindow()
                saved = done if saves else saved
            waiting_since = time.perf_counter()
        self.best.replace_lost(self.progress)
        return self._finish()

    def _report(self, done: int, window: ReportWindow, validates: bool, saves: bool) -> None:
        """One line of metrics, with a validation and a checkpoint where they are due."""
        self.progress.step = done
        metrics = self._window_metrics(done, window)
        if saves:
            self.run.step.watch_weights(done - 1)
        self._check_finite()
        self.progress.seconds += metrics["seconds"]
        if validates or saves:
            self.told.heartbeat.note("checkpoint", done)
            average_batchnorm_statistics(self.run.step.distiller, self.world)
            average_batchnorm_statistics(self.run.step.average, self.world)
        # A line is on disk before the checkpoint that stands for it, or in it where a validation is due, so
        # that no resumed run can miss one.
        if not validates:
            self._tell(done, metrics, validates)
        if saves:
            self.progress.due = metrics if validates else {}
            self.reporter.report(metrics, self._save(), done == self.spec.train.steps)
        if validates:
            self._tell(done, metrics, validates)

    def _tell(self, done: int, metrics: dict[str, Any], validates: bool) -> None:
        """Validate if that is due, and write the line of metrics."""
        result = self.best.validate(done, self.progress) if validates else None
        if result is not None:
            scores = {k: v for k, v in result.metrics().items() if not k.startswith("iou/")}
            metrics = {**metrics, **scores}
        self.told.line(done, metrics, result)
        if result is not None:
            self.told.validated(done, self.progress)
            self.progress.due = {}
            self.reporter.report(metrics, None, done == self.spec.train.steps)

    def _stop(self, done: int, window: ReportWindow, saved: bool) -> NoReturn:
        """Write a checkpoint; it holds the window that is not full, of which no line of metrics tells yet."""
        self.progress.step, state = done, None
        if not saved:
            self.run.step.watch_weights(done - 1)
            self._check_finite()
            average_batchnorm_statistics(self.run.step.distiller, self.world)
            average_batchnorm_statistics(self.run.step.average, self.world)
            self.progress.window = window.packed(self.world)
            state = self._save()
        self.reporter.report({"step": done}, state, True)
        self.told.message(f"stopped at step {done} of {self.spec.train.steps}")
        barrier(self.world)
        raise Stopped(f"stopped at step {done}")

    def _window_metrics(self, done: int, window: ReportWindow) -> dict[str, float]:
        """The window's figures. Here the host waits for the device."""
        sums = {name: value / window.steps for name, value in window.terms.items()}
        means = mean_over_ranks(sums, self.world)
        seconds = time.perf_counter() - window.start
        images = window.steps * self.spec.train.batch_size
        metrics: dict[str, float] = {
            "step": done,
            **{name if name == "grad_norm" else f"loss/{name}": value for name, value in means.items()},
            "lr": self.run.step.lr(done - 1),
            "images_per_second": images / seconds,
            "data_wait": window.wait / seconds,
            "seconds": seconds,
        }
        if self.world.device.type == "cuda":
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.world.device) / 2**30
        return metrics

    def _check_finite(self) -> None:
        """Stop, on all ranks alike, if a term was not finite since the last look."""
        check_finite(self.run.step.nonfinite, self.world, self._last_good)

    def _last_good(self) -> str:
        """The newest checkpoint when all are written."""
        self.reporter.settle()
        return self._newest_checkpoint(lambda text: None)

    def _save(self) -> Snapshot | None:
        """The complete state, on the main rank, when the checkpoint before is written."""
        self.reporter.settle()
        if not self.world.is_main:
            return None
        state = self.copy_to_host({**state_of(self.run), **vars(self.progress)})
        return Snapshot(state, self.told.patience)

    def _finish(self) -> dict[str, Any]:
        """Write `result.json`."""
        progress = self.progress
        images = progress.step * self.spec.train.batch_size
        result: dict[str, Any] = {
            "recipe": self.spec.name,
            "model": self.spec.model.name,
            "steps": progress.step,
            "parameters": sum(p.numel() for p in self.run.student.parameters()),
            "seconds": progress.seconds,
            "images_per_second": images / progress.seconds if progress.seconds else None,
            "workers": self.world.size,
            "last": progress.last,
            "best": progress.best,
        }
        if self.teacher is not None:
            result["teacher"] = self.teacher
            tell_better_student(self.teacher, progress.best, self.told.message)
        self.told.finish(result)
        barrier(self.world)
        return result
