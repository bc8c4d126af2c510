"""Weights & Biases: the project of WANDB_PROJECT, or `cirkd`; with WANDB_MODE=offline in the run's folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.report.loggers.base import LOGGERS, Logger, plain_figures, plain_settings
from cirkd_ray.train.reporter import Ending
from cirkd_ray.train.rundir import RunDirectory


@LOGGERS.register("wandb")
class WandbLogger(Logger):
    """A run with the recipe's settings as its config, grouped by sweep or comparison.

    The command line, the code and the machine are not told, and neither is what is printed: only the recipe
    and its figures. The key is WANDB_API_KEY's, or that of `wandb login`; it is stored nowhere else.
    """

    package = "wandb"

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory)
        self._run: Any = None

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Begin a run, or go on with the one that is remembered."""
        import wandb

        labels = self.directory.labels
        known = self.remembered("wandb")
        if known is None:
            known = secrets.token_hex(4)
            self.remember("wandb", known)
        quiet = {
            "silent": True,
            "console": "off",
            "save_code": False,
            "disable_git": True,
            "disable_code": True,
        }
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cirkd"),
            group=labels.run if labels.trial else None,
            name=labels.name,
            id=known,
            resume="allow",
            reinit="create_new",  # runs that share batches share a process
            dir=str(self.directory.path),
            config=plain_settings(spec),
            settings=wandb.Settings(**quiet, x_disable_meta=True),
        )
        # Not W&B's own step, which never goes back: a resumed run writes some lines again.
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line."""
        self._run.log({**plain_figures(metrics), "step": step})

    def validation(self, step: int, result: EvaluationResult) -> None:
        """Scores that are not in the line: IoU per class."""
        scores = {name: value for name, value in result.metrics().items() if name.startswith("iou/")}
        self._run.log({**plain_figures(scores, "val_"), "step": step})

    def finish(self, result: Mapping[str, Any]) -> None:
        """The best scores."""
        self._run.summary.update(plain_figures(result.get("best") or {}, "best/"))

    def close(self, how: Ending) -> None:
        """Say how it ended, when all is handed over."""
        if self._run is not None:
            self._run.finish(exit_code=0 if how == "finished" else 1)
