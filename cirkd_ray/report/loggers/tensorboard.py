"""The run's `tensorboard` folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cirkd_ray.config.composition import flatten
from cirkd_ray.evaluate.evaluation import COUNTS, EvaluationResult
from cirkd_ray.report.loggers.base import LOGGERS, Logger
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.train.disk import require_free
from cirkd_ray.train.rundir import RunDirectory

_ROOM = 2_000_000
"""Bytes that must be free before events are written: pictures of a validation, and more."""
_VALIDATION = {"miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou", "step", *COUNTS}


@LOGGERS.register("tensorboard")
class TensorBoardLogger(Logger):
    """Writes the run's `tensorboard` folder."""

    service = False

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory)
        self.board: TensorBoard | None = None
        self.hparams: dict[str, Any] | None = None

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Open the event file; what it holds after `step` is superseded."""
        self._write(step + 1, lambda board: None)
        self.hparams = {k: v for k, v in flatten(spec).items() if isinstance(v, bool | int | float | str)}

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Every figure of a line, losses under `loss/`, the rest under `train/`."""
        if self.hparams is not None:
            shown = {k: v for k, v in metrics.items() if k not in _VALIDATION}
            named = {k if "/" in k else f"train/{k}": v for k, v in shown.items()}
            self._write(step, lambda board: board.scalars(step, named))

    def validation(self, step: int, result: EvaluationResult) -> None:
        """Scores, confusion matrix and pictures."""
        if self.hparams is not None:
            self._write(step, lambda board: board.validation(step, result))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Hyper-parameters beside the final figures."""
        if self.hparams is not None:
            hparams = self.hparams
            kinds = [kind for kind in ("best", "last") if result.get(kind)]
            scores = {f"hparam/{kind}_miou": result[kind]["miou"] for kind in kinds}
            self._write(result["steps"] + 1, lambda board: board.hparams(hparams, scores))
            if self.board is not None:
                self.board.close()

    def _write(self, step: int, act: Callable[[TensorBoard], None]) -> None:
        """Write events of `step`, all or none that count: after a failure, the next go to a new file, from
        which on TensorBoard drops what earlier ones hold of that step and later ones."""
        require_free(self.directory.path, _ROOM)
        try:
            if self.board is None:
                self.board = TensorBoard(self.directory.tensorboard, purge_step=step)
            act(self.board)
            self.board.flush()
        except OSError:
            self.board = None
            raise
