"""Files that a run writes for people while it trains: `tensorboard/` and `log.txt`.

They are listeners of the run (`cirkd_ray.train.reporter.Listener`), on its main rank.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from cirkd_ray.config.composition import flatten
from cirkd_ray.evaluate.evaluation import COUNTS, EvaluationResult, over_classes
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.train.disk import require_free
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory

SHOWN_LIVE = "  "
"""Begins the lines of `log.txt` that a follower does not repeat: it draws the figures from the metrics."""
BEGINS = re.compile(r".*: step (\d+) to \d+")
"""The line of a start: steps that are done, and the run's length."""
UNDER_WAY = re.compile(r"(.+): (\d+) of (\d+) images are done")
"""The line of a validation that goes on."""
PAUSE = 15.0
"""Seconds between two lines of one validation."""
_ROOM = 2_000_000
"""Bytes that must be free before events are written: pictures of a validation, and more."""
_VALIDATION = {"miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou", "step", *COUNTS}


class TensorBoardListener(Listener):
    """Writes the run's `tensorboard` folder."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
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


class RunLog(Listener):
    """Writes the run's messages and main figures to its `log.txt`, a line each."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._said = 0.0

    def start(self, spec: dict[str, Any], step: int) -> None:
        """The recipe's name, the first and the last step."""
        self.message(f"{SHOWN_LIVE}{spec['name']}: step {step} to {spec['train']['steps']}")

    def underway(self, what: str, done: int, total: int) -> None:
        """The beginning, and every quarter of a minute how far it is."""
        if not done or time.monotonic() - self._said >= PAUSE:
            self._said = time.monotonic()
            self.message(f"{SHOWN_LIVE}{what}: {done} of {total} images are done")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The main figures of a line of metrics."""
        names = {"loss/total": "loss", "miou": "mIoU", "images_per_second": "images/s"}
        figures = [f"{text} {metrics[name]:.4g}" for name, text in names.items() if name in metrics]
        figures += [f"over {classes}"] if (classes := over_classes(metrics)) else []
        self.message(f"{SHOWN_LIVE}step {step}: {', '.join(figures)}")

    def finish(self, result: Mapping[str, Any]) -> None:
        """The end."""
        self.message(f"{SHOWN_LIVE}finished")

    def message(self, text: str) -> None:
        """Append."""
        self.directory.log(text)
