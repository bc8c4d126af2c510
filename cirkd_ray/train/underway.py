"""What a run tells while it is under way: lines of metrics, whole validations and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.train.progress import RunProgress
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory


class Underway:
    """Tells a run's listeners, and its directory what a resumed run will need; ranks but the main are silent.

    Args:
        directory: the run's.
        listeners: of the main rank.
        is_main: whether this is it.
    """

    def __init__(self, directory: RunDirectory, listeners: Sequence[Listener], is_main: bool) -> None:
        self.directory, self.is_main = directory, is_main
        self.listeners = listeners if is_main else ()

    def start(self, spec: Mapping[str, Any], step: int) -> None:
        """Training begins after `step` steps."""
        for listener in self.listeners:
            listener.start(dict(spec), step)

    def message(self, text: str) -> None:
        """Something that the user should know."""
        for listener in self.listeners:
            listener.message(text)

    def line(self, done: int, metrics: Mapping[str, Any], result: EvaluationResult | None) -> None:
        """A line of metrics, and the validation that it holds the scores of."""
        if not self.is_main:
            return
        self.directory.append_metrics(metrics)
        for listener in self.listeners:
            listener.metrics(done, metrics)
            if result is not None:
                listener.validation(done, result)

    def validated(self, done: int, progress: RunProgress) -> None:
        """A validation is over, and its scores are in `progress`."""
        if self.is_main:
            self.directory.append_validation(done, progress.best, progress.last)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run has this result."""
        if self.is_main:
            self.directory.write_result(result)
        for listener in self.listeners:
            listener.finish(result)
