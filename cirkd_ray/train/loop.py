"""The training loop, read top to bottom: every method, network and data set runs through it.

`TrainingLoop.resume` loads the last checkpoint, `train` does the steps that are left, and `_report` writes
metrics, validates and saves a checkpoint where they are due.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import TrainingError
from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.files import plain_json
from cirkd_ray.train.agreement import StopAgreement
from cirkd_ray.train.batches import training_batches
from cirkd_ray.train.build import Run, build_run, seed_of
from cirkd_ray.train.checkpoint import (
    checkpoint_name,
    newest_checkpoint,
    read_checkpoint,
    remove_partial_checkpoints,
    write_checkpoint,
)
from cirkd_ray.train.distributed import (
    World,
    average_batchnorm_statistics,
    barrier,
    broadcast_text,
    mean_over_ranks,
    minimum_over_ranks,
)
from cirkd_ray.train.progress import ReportWindow, RunProgress
from cirkd_ray.train.rehearsal import enough_values
from cirkd_ray.train.reporter import Listener, Reporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.state import load_state, refuse_damaged, state_of
from cirkd_ray.train.step import NEVER, WEIGHTS
from cirkd_ray.train.stop import Stopped, asked
from cirkd_ray.train.validation import (
    Scores,
    measured_on,
    score_teacher,
    scores_of,
    tell_better_student,
    validate,
    validation_loader,
)
from cirkd_ray.weights import save_model


def train(
    spec: RunSpec,
    world: World,
    directory: RunDirectory,
    reporter: Reporter,
    listeners: Sequence[Listener] = (),
    resume_from: Path | None = None,
    asked_to_stop: Callable[[], bool] = asked,
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

    Returns:
        The result, as it stands in `result.json`; the same on all ranks.

    Raises:
        TrainingError: a loss is not finite.
        UserError: bad data, a full disk and the like, with what to do.
        Stopped: asked to; a checkpoint of the last step is written.
    """
    loop = TrainingLoop(build_run(spec, world), directory, reporter, listeners if world.is_main else ())
    loop.resume(resume_from)
    loop.score_teacher()
    return loop.train(StopAgreement(asked_to_stop, world))


class TrainingLoop:
    """One rank's way through a run."""

    def __init__(
        self, run: Run, directory: RunDirectory, reporter: Reporter, listeners: Sequence[Listener]
    ) -> None:
        self.run, self.spec, self.world = run, run.spec, run.world
        self.directory, self.reporter, self.listeners = directory, reporter, listeners
        self.progress = RunProgress()
        self.started_from: Path | None = None
        self.val_batches = validation_loader(run)
        self.measured_on = measured_on(run) if run.world.is_main else ""
        self.teacher: Scores | None = None

    def resume(self, started_from: Path | None = None) -> None:
        """Load the newest whole checkpoint, which the main rank chooses; without one start at step 0."""
        self.started_from = started_from
        path = self._newest_checkpoint(self._message)
        if path:
            self.progress = RunProgress(**load_state(self.run, read_checkpoint(Path(path))))
            self._take_validation(Path(path))
        else:
            refuse_damaged(self.directory.checkpoints, self.world)
        if self.world.is_main:
            remove_partial_checkpoints(self.directory.checkpoints)
            self.directory.rewind(self.progress.step, validated=not self.progress.due)
        for listener in self.listeners:
            listener.start(self.spec.to_dict(), self.progress.step)
        for note in self.run.notes:
            self._message(note)
        if path:
            self._message(f"continuing at step {self.progress.step} from {path}")

    def score_teacher(self) -> None:
        """Score the teacher on the validation split, if that is not known yet."""
        self.teacher = score_teacher(
            self.run, self.directory, self.val_batches, self.measured_on, self._message
        )

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
            self._message(f"the validation of step {self.progress.step} is due")
            self._tell(self.progress.step, self.progress.due, validates=True)
        batches = training_batches(self.run, self.progress.step)
        window, waiting_since = ReportWindow.unpacked(self.progress.window, self.world), time.perf_counter()
        self.progress.window = {}
        saved = self.progress.step
        self.run.step.distiller.train()
        for step in range(self.progress.step, train.steps):
            if stops(step):
                self._stop(step, window, saved == step)
            micro_batches = list(islice(batches, train.accumulate))
            waited = time.perf_counter() - waiting_since
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
        self._replace_lost_export()
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
            average_batchnorm_statistics(self.run.step.distiller, self.world)
            average_batchnorm_statistics(self.run.step.average, self.world)
        # A line is on disk before the checkpoint that stands for it, or in it where a validation is due, so
        # that no resumed run can miss one.
        if not validates:
            self._tell(done, metrics, validates)
        if saves:
            self.progress.due = metrics if validates else {}
            self.reporter.report(metrics, self._save(done), done == self.spec.train.steps)
        if validates:
            self._tell(done, metrics, validates)

    def _tell(self, done: int, metrics: dict[str, Any], validates: bool) -> None:
        """Validate if that is due, and write the line of metrics."""
        result = self._validate(done) if validates else None
        if result is not None:
            scores = {k: v for k, v in result.metrics().items() if not k.startswith("iou/")}
            metrics = {**metrics, **scores}
        if self.world.is_main:
            self.directory.append_metrics(metrics)
            for listener in self.listeners:
                listener.metrics(done, metrics)
                if result is not None:
                    listener.validation(done, result)
        if result is not None:
            if self.world.is_main:
                self.directory.append_validation(done, self.progress.best, self.progress.last)
            self.progress.due = {}
            self.reporter.report(metrics, None, done == self.spec.train.steps)

    def _stop(self, done: int, window: ReportWindow, saved: bool) -> NoReturn:
        """Write a checkpoint; it holds the window that is not full, of which no line of metrics tells yet."""
        self.progress.step, path = done, None
        if not saved:
            self.run.step.watch_weights(done - 1)
            self._check_finite()
            average_batchnorm_statistics(self.run.step.distiller, self.world)
            average_batchnorm_statistics(self.run.step.average, self.world)
            self.progress.window = window.packed(self.world)
            path = self._save(done)
        self.reporter.report({"step": done}, path, True)
        self._message(f"stopped at step {done} of {self.spec.train.steps}")
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
        """Stop, on all ranks alike, if a term was not finite since the last look.

        Raises:
            TrainingError: with the step, the loss's name and the last good checkpoint.
        """
        first = self.run.step.nonfinite.first
        if not first:
            return
        steps = minimum_over_ranks(torch.stack(list(first.values())), self.world).tolist()
        bad = [(step, name) for step, name in zip(steps, first, strict=True) if step != NEVER]
        if not bad:
            return
        names = [(step, name) for step, name in bad if name != "total"] or bad
        step, name = min(names)
        # Looked up, not remembered: the last one may still be on its way to the run's directory.
        found = self._newest_checkpoint(lambda text: None)
        kept = f"the last good checkpoint is {found}" if found else "no checkpoint was written before"
        about, when = ("weights", "after") if name == WEIGHTS else (f"loss {name!r}", "at")
        raise TrainingError(
            f"{about}: not finite {when} step {step}; {kept}.\n"
            "Lower optim.lr, set optim.clip_grad_norm, or look at that loss's weight and temperature."
        )

    def _validate(self, done: int) -> EvaluationResult:
        """Score the student on the validation split; keep the best one as `student.safetensors`."""
        run, spec = self.run, self.spec
        shown = min(spec.train.pictures, len(run.val_set))
        pictures = [index * len(run.val_set) // shown for index in range(shown)]  # spread over the set
        teacher = run.teacher if run.teacher is not None and run.teacher.num_classes else None
        result = validate(run, run.evaluated, self.val_batches, pictures=pictures, teacher=teacher)
        scores = {"step": done, **result.metrics(), "images_per_second": result.images_per_second}
        self.progress.last = scores
        if not self.progress.best or scores["miou"] > self.progress.best["miou"]:
            self.progress.best = scores
            if self.world.is_main:
                about: dict[str, Any] = {
                    "recipe": spec.name,
                    "data": spec.data.name,
                    "range": run.val_set.span,
                    "precision": run.precision,
                    "validation": plain_json(scores),
                    "measured": {"on": self.measured_on, "scores": plain_json(scores_of(result))},
                }
                half = spec.train.export == "fp16"
                save_model(run.evaluated, self.directory.path, run.val_set.classes, half=half, **about)
        return result

    def _replace_lost_export(self) -> None:
        """Export the last student where the best one is not in the directory.

        Its files were deleted, or it belongs to the run that this one's checkpoint came from. `best` then
        speaks of what is exported.
        """
        gone = self.directory.missing_model_file() if self.world.is_main else None
        gone = broadcast_text(gone or "", self.world)
        if gone:
            self._message(f"{gone} is not in {self.directory.path}: exporting the student of the last step")
            self.progress.best = {}
            self._validate(self.progress.step)

    def _save(self, done: int) -> Path | None:
        """Write the complete checkpoint, on the main rank."""
        if not self.world.is_main:
            return None
        state = {**state_of(self.run), **vars(self.progress)}
        return write_checkpoint(self.reporter.checkpoint_folder(checkpoint_name(done)), state)

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
            tell_better_student(self.teacher, progress.best, self._message)
        if self.world.is_main:
            self.directory.write_result(result)
            for listener in self.listeners:
                listener.finish(result)
        barrier(self.world)
        return result

    def _message(self, text: str) -> None:
        for listener in self.listeners:
            listener.message(text)
