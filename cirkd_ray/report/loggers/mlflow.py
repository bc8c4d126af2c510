"""MLflow: on the server of MLFLOW_TRACKING_URI, or in `mlruns` beside the run (behind a URL, in it)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.remote.copies import url_of
from cirkd_ray.report.loggers.base import LOGGERS, Logger, plain_figures, plain_settings
from cirkd_ray.train.reporter import Ending
from cirkd_ray.train.rundir import RunDirectory

_STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_TEXT = 500
"""Characters of a parameter that every store takes."""
_BATCH = 100
"""Parameters that a request may hold."""


@LOGGERS.register("mlflow")
class MlflowLogger(Logger):
    """A run with the recipe's settings as parameters; its figures, scores per class, recipe and result.

    Its experiment is MLFLOW_EXPERIMENT_NAME, or the sweep or comparison that it belongs to, or `cirkd`.
    Credentials are MLflow's own variables, which are read by it and stored nowhere.
    """

    package = "mlflow"

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory)
        self._client: Any = None
        self._run = ""

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Go on with the run that is remembered, if the server knows it, else begin one."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        run = self.directory.path
        beside = run if url_of(run) else (self.directory.overview or run).parent  # or nobody uploads it
        place = os.environ.get("MLFLOW_TRACKING_URI") or (beside / "mlruns").as_uri()
        if "://" not in place or place.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=place)
        known = self.remembered("mlflow")
        if known is not None:
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self._run = known
                return
        self._run = self._run or self._begin(spec)  # of a try before, which the server did not take whole
        self._tell_settings(spec)
        self.remember("mlflow", self._run)

    def _begin(self, spec: dict[str, Any]) -> str:
        """A new run's id."""
        labels = self.directory.labels
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or (labels.run if labels.trial else "cirkd")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"cirkd.run": labels.run, "cirkd.trial": labels.trial, "cirkd.recipe": str(spec["name"])}
        return str(self._client.create_run(number, run_name=labels.name, tags=tags).info.run_id)

    def _tell_settings(self, spec: dict[str, Any]) -> None:
        from mlflow.entities import Param

        settings = [Param(name, str(value)[:_TEXT]) for name, value in plain_settings(spec).items()]
        for first in range(0, len(settings), _BATCH):
            self._client.log_batch(self._run, params=settings[first : first + _BATCH])

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line."""
        self._log(step, plain_figures(metrics))

    def validation(self, step: int, result: EvaluationResult) -> None:
        """Scores that are not in the line: IoU per class."""
        scores = {name: value for name, value in result.metrics().items() if name.startswith("iou/")}
        self._log(step, plain_figures(scores, "val_"))

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(k, v, now, step) for k, v in figures.items()])

    def finish(self, result: Mapping[str, Any]) -> None:
        """The best scores, the recipe and the result."""
        self._log(int(result["steps"]), plain_figures(result.get("best") or {}, "best/"))
        for path in (self.directory.recipe, self.directory.result):
            self._client.log_artifact(self._run, str(path))

    def close(self, how: Ending) -> None:
        """Say how it ended."""
        if self._run:
            self._client.set_terminated(self._run, _STATES[how])
