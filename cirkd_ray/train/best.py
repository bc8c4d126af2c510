"""Validation of the student, and the best one of them as the run's exported model."""

from __future__ import annotations

from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.files import plain_json
from cirkd_ray.train.build import Run
from cirkd_ray.train.distributed import broadcast_text
from cirkd_ray.train.progress import RunProgress
from cirkd_ray.train.underway import Underway
from cirkd_ray.train.validation import ValidationSplit, images, scores_of, validate
from cirkd_ray.weights import save_model


class BestStudent:
    """Keeps the student with the best mIoU as `student.safetensors`.

    Args:
        run: the run.
        told: says what goes on, and knows the folder where the model is written.
        split: the validation images.
    """

    def __init__(self, run: Run, told: Underway, split: ValidationSplit) -> None:
        self.run, self.told, self.directory, self.split = run, told, told.directory, split

    def validate(self, done: int, progress: RunProgress) -> EvaluationResult:
        """Score the student after step `done`; `progress` gets the scores. Every rank calls it."""
        run = self.run
        shown = min(run.spec.train.pictures, len(run.val_set))
        pictures = [index * len(run.val_set) // shown for index in range(shown)]  # spread over the set
        teacher = run.teacher if run.teacher is not None and run.teacher.num_classes else None
        if run.shared.sharded:
            teacher = None  # the first rank cannot run it alone
        seen = self.told.scoring("validation", f"validating at step {done}", done, images(run))
        options: dict[str, Any] = {"pictures": pictures, "teacher": teacher, "on_images": seen}
        result = validate(run, run.evaluated, self.split, **options)
        scores = {"step": done, **result.metrics(), "images_per_second": result.images_per_second}
        progress.last = scores
        if not progress.best or scores["miou"] > progress.best["miou"]:
            progress.best = scores
            if run.world.is_main:
                self._export(scores, result)
        return result

    def replace_lost(self, progress: RunProgress) -> None:
        """Export the last student where the best one is not in the directory.

        Its files were deleted, or it belongs to the run that this one's checkpoint came from. `best` then
        speaks of what is exported.
        """
        gone = self.directory.missing_model_file() if self.run.world.is_main else None
        gone = broadcast_text(gone or "", self.run.world)
        if gone:
            self.told.message(
                f"{gone} is not in {self.directory.path}: exporting the student of the last step"
            )
            progress.best = {}
            self.validate(progress.step, progress)

    def _export(self, scores: dict[str, Any], result: EvaluationResult) -> None:
        run, spec = self.run, self.run.spec
        about: dict[str, Any] = {
            "recipe": spec.name,
            "data": spec.data.name,
            "range": run.train_set.span or run.val_set.span,
            "precision": run.precision,
            "validation": plain_json(scores),
            "measured": {"on": self.split.digits, "scores": plain_json(scores_of(result))},
        }
        half = spec.train.export == "fp16"
        classes, folder = run.val_set.classes, self.directory.path
        self.told.patience.write(lambda: save_model(run.evaluated, folder, classes, half=half, **about))
