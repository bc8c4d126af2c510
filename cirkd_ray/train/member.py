"""One run of a cohort: what it resumes from, its steps, and what it reports, validates and saves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.train.best import BestStudent
from cirkd_ray.train.build import Run, seed_of
from cirkd_ray.train.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    remove_partial_checkpoints,
)
from cirkd_ray.train.distributed import (
    average_batchnorm_statistics,
    barrier,
    broadcast_text,
    mean_over_ranks,
)
from cirkd_ray.train.finite import check_finite
from cirkd_ray.train.progress import ReportWindow, RunProgress
from cirkd_ray.train.rehearsal import enough_values
from cirkd_ray.train.reporter import Reporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.shared import MicroBatch
from cirkd_ray.train.snapshot import HostCopy, Snapshot
from cirkd_ray.train.state import load_state, refuse_damaged, shared_checkpoint, state_of, whole_queues
from cirkd_ray.train.stop import Interrupted, Stopped
from cirkd_ray.train.underway import Underway
from cirkd_ray.train.validation import Scores, ValidationSplit, score_teacher, tell_better_student


class Member:
    """One rank's way through a run, step by step: `Cohort` has the batches.

    Args:
        run: what is trained.
        told: says what goes on, and knows the run's folder.
        reporter: takes figures and checkpoints.
        split: the validation images.
        keeps: keep the state of the last checkpoint in memory, for others to start from.

    Attributes:
        done: steps that are done.
        kept: that state, on the main rank.
        window: sums since the last line of metrics; None before the first step.
    """

    def __init__(
        self, run: Run, told: Underway, reporter: Reporter, split: ValidationSplit, keeps: bool = False
    ) -> None:
        self.run, self.spec, self.world = run, run.spec, run.world
        self.told, self.directory, self.reporter = told, told.directory, reporter
        self.progress = RunProgress()
        self.done, self.saved = 0, 0
        self.window: ReportWindow | None = None
        self.copy_to_host = HostCopy()
        self.keeps = keeps
        self.kept: dict[str, Any] | None = None
        self.started_from: Path | None = None
        self.best = BestStudent(run, told, split)
        self.teacher: Scores | None = None

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.spec.train.steps

    def resume(self, started_from: Path | None = None, state: dict[str, Any] | None = None) -> None:
        """Load the newest whole checkpoint, which the main rank chooses; without one start at step 0.

        Args:
            started_from: a checkpoint of another run to start from where this one has none.
            state: what that checkpoint holds, where it is known; it stays as it is.
        """
        self.started_from = started_from
        path = shared_checkpoint(
            self._newest_checkpoint(self.told.message) if self.world.is_main else None,
            self.world,
            self.spec.cluster.storage_timeout,
        )
        if path:
            known = state if path == started_from else None
            found = read_checkpoint(path) if known is None else HostCopy()(known)
            self.progress = RunProgress(**load_state(self.run, found))
            self._take_validation(path)
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
        self.done = self.saved = self.progress.step
        before, self.progress.workers = self.progress.workers, self.world.size
        if before not in (0, self.world.size):
            self.told.message(
                f"WARNING: workers: {before} before, {self.world.size} now: figures will differ a little "
                "from those of an undisturbed run"
            )

    def catch_up(self) -> None:
        """Score the teacher if that is not known yet, and do a validation that is due."""
        with self._stopping():
            self.teacher = score_teacher(self.run, self.told, self.best.split, self.progress.step)
        if self.progress.due:
            self.told.message(f"the validation of step {self.progress.step} is due")
            self._tell(self.progress.step, self.progress.due, validates=True)

    def _newest_checkpoint(self, warn: Callable[[str], None]) -> Path | None:
        """The newest whole checkpoint, or the one that the run started from."""
        return newest_checkpoint(self.directory.checkpoints, warn) or self.started_from

    def _take_validation(self, checkpoint: Path) -> None:
        """The scores of the validation after that checkpoint, where the run that it is of finished it."""
        found = ""
        if self.world.is_main and self.progress.due:
            done = RunDirectory(checkpoint.parent.parent).read_validation(self.progress.step)
            found = json.dumps(done) if done else ""
        if found := broadcast_text(found, self.world):
            self.progress = replace(self.progress, **json.loads(found), due={})

    def open(self) -> ReportWindow:
        """Begin to count for the next line of metrics, unless that goes on already."""
        if self.window is None:
            self.window = ReportWindow.unpacked(self.progress.window, self.world)
            self.progress.window = {}
            self.run.step.distiller.train()
        return self.window

    def step(self, micro_batches: Sequence[MicroBatch], waited: float) -> None:
        """Do the next step; report, validate and save where that is due after it.

        Args:
            micro_batches: of this rank.
            waited: seconds that they were waited for.
        """
        self.reporter.check()
        train, step, window = self.spec.train, self.done, self.open()
        torch.manual_seed(seed_of(self.spec.seed, 2, step, self.world.rank))
        with enough_values(self.spec, len(micro_batches[0].labels)):
            window.add(self.run.step(step, micro_batches), waited)
        self.done = done = step + 1
        validates = done % train.validate_every == 0 or done == train.steps
        saves = done % train.checkpoint_every == 0 or done == train.steps
        if validates or saves or done % train.log_every == 0:
            self._report(done, window, validates, saves)
            self.window = ReportWindow()

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
        self.progress.due = metrics if validates else {}
        if saves:
            self.reporter.report(metrics, self._save(), done == self.spec.train.steps)
            self.saved = done
        if validates:
            self._tell(done, metrics, validates)

    def _tell(self, done: int, metrics: dict[str, Any], validates: bool) -> None:
        """Validate if that is due, and write the line of metrics."""
        result = None
        if validates:
            with self._stopping():
                result = self.best.validate(done, self.progress)
        if result is not None:
            scores = {k: v for k, v in result.metrics().items() if not k.startswith("iou/")}
            metrics = {**metrics, **scores}
        self.told.line(done, metrics, result)
        if result is not None:
            self.told.validated(done, self.progress)
            self.progress.due = {}
            self.reporter.report(metrics, None, done == self.spec.train.steps)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """For scoring: a stop leaves it, and this run with a checkpoint from which it is done anew."""
        try:
            yield
        except Interrupted:
            raise
        except Stopped:
            raise self.stop() from None

    def stop(self) -> Stopped:
        """Write a checkpoint, if there is none of this step."""
        done = self.done
        self.reporter.report({"step": done}, self._between_lines(), True)
        self.told.message(f"stopped at step {done} of {self.spec.train.steps}")
        barrier(self.world)
        return Stopped(f"stopped at step {done}")

    def save(self, why: str | None) -> None:
        """The same, and go on.

        Args:
            why: to be told first.
        """
        if why is not None:
            self.told.message(f"{why}, of step {self.done}")
        if self.saved != self.done:
            self.reporter.report({"step": self.done}, self._between_lines(), False)
            self.saved, self.progress.window = self.done, {}

    def _between_lines(self) -> Snapshot | None:
        """On the main rank the complete state, if there is no checkpoint of this step.

        It holds what no line of metrics tells yet: the window that is not full, or the line whose validation
        is due.
        """
        self.progress.step = self.done
        if self.saved == self.done:
            return None
        self.run.step.watch_weights(self.done - 1)
        self._check_finite()
        average_batchnorm_statistics(self.run.step.distiller, self.world)
        average_batchnorm_statistics(self.run.step.average, self.world)
        self.progress.window = {} if self.progress.due else self.open().packed(self.world)
        return self._save()

    def _window_metrics(self, done: int, window: ReportWindow) -> dict[str, float]:
        """The window's figures. Here the host waits for the device."""
        sums = {name: value / window.steps for name, value in window.terms.items()}
        means = mean_over_ranks(sums, self.world)
        seconds = window.seconds()
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
        found = self._newest_checkpoint(lambda text: None) if self.world.is_main else None
        return broadcast_text(str(found or ""), self.world)

    def _save(self) -> Snapshot | None:
        """The complete state, on the main rank, when the checkpoint before is written."""
        self.reporter.settle()
        queues = whole_queues(self.run)
        if not self.world.is_main:
            return None
        state = self.copy_to_host({**state_of(self.run, queues), **vars(self.progress)})
        self.kept = state if self.keeps else None
        return Snapshot(state, self.told.patience, self.told.heartbeat.alive, self.told.checkpoint)

    def finish(self) -> dict[str, Any]:
        """Write `result.json`."""
        progress = self.progress
        with self._stopping():
            self.best.replace_lost(progress)
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
