"""Listeners of a run (see `engine.reporter.Listener`): what it writes for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cirkd_ray.config.composition import flatten
from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.report.progress import Progress
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory


class TensorBoardListener(Listener):
    """Writes the run's `tensorboard` folder."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.board: TensorBoard | None = None
        self.hparams: dict[str, Any] = {}

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Open the event file; what it holds after `step` is superseded."""
        self.board = TensorBoard(self.directory.tensorboard, purge_step=step + 1)
        self.hparams = {k: v for k, v in flatten(spec).items() if isinstance(v, bool | int | float | str)}

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Every figure of a line, losses under `loss/`, the rest under `train/`."""
        if self.board is not None:
            validation = ("miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou", "step")
            shown = {k: v for k, v in metrics.items() if k not in validation}
            self.board.scalars(step, {k if "/" in k else f"train/{k}": v for k, v in shown.items()})

    def validation(self, step: int, result: EvaluationResult) -> None:
        """Scores, confusion matrix and pictures."""
        if self.board is not None:
            self.board.validation(step, result)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Hyper-parameters beside the final figures."""
        if self.board is not None:
            figures = {
                f"hparam/{kind}_miou": result[kind]["miou"] for kind in ("best", "last") if result.get(kind)
            }
            self.board.hparams(self.hparams, figures)
            self.board.close()


class ProgressListener(Listener):
    """Shows the run in this process's terminal or log."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line."""
        self.progress.update(step, dict(metrics))

    def message(self, text: str) -> None:
        """A line between."""
        self.progress.message(text)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Close the live line."""
        self.progress.close()
