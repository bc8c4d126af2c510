"""Where the loop hands its figures and checkpoints: the one seam between training and a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.remote.mirror import soon
from cirkd_ray.train.checkpoint import prune_checkpoints
from cirkd_ray.train.snapshot import BackgroundWriter, Snapshot


class Reporter(Protocol):
    """Called on every rank at the same steps."""

    def report(self, metrics: Mapping[str, float], checkpoint: Snapshot | None, last: bool) -> None:
        """After a validation or a checkpoint: figures of all ranks, and on the main rank the state to write.

        It is written in the background while training goes on, one at a time. The last step makes two
        reports with `last`, of its checkpoint and of its validation. Each returns when all checkpoints are
        in the run's directory.
        """

    def check(self) -> None:
        """Look, before each step, whether a checkpoint could not be written.

        Raises:
            StorageError: so it is.
        """

    def settle(self) -> None:
        """Wait until all checkpoints that were reported are in the run's directory.

        Raises:
            StorageError: one could not be written.
        """


class LocalReporter:
    """A plain process: all but the newest checkpoints are deleted.

    Args:
        folder: the run's `checkpoints`.
        keep: how many.
        background: write while training goes on.
        written: hears of each checkpoint, before others are deleted.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        background: bool = True,
        written: Callable[[Path], object] = lambda path: None,
    ) -> None:
        self.folder, self.keep, self.background, self.written = folder, keep, background, written
        self.writer = BackgroundWriter()

    def report(self, metrics: Mapping[str, float], checkpoint: Snapshot | None, last: bool) -> None:
        """Write the checkpoint and prune."""
        if checkpoint is not None:
            self.writer.start(partial(self._write, checkpoint))
        if last or not self.background:
            self.settle()

    def check(self) -> None:
        """Look how the writer ended, if it has."""
        self.writer.check()

    def settle(self) -> None:
        """Wait for the writer."""
        self.writer.settle()

    def _write(self, checkpoint: Snapshot) -> None:
        checkpoint.write(self.folder / checkpoint.name)
        self.written(self.folder / checkpoint.name)
        prune_checkpoints(self.folder, self.keep)
        soon(self.folder.parent)


Ending = Literal["finished", "stopped", "failed"]
"""How a run leaves a process that it has not died with; `stopped` and `failed` ones may be resumed."""


class Listener:
    """Follows a run on its main rank; every method may be left out.

    This is the one interface of all that shows or keeps what a run tells: the log, the terminal, TensorBoard,
    Prometheus, MLflow, Weights & Biases and loggers of a user's own (`cirkd_ray.report.loggers`).
    """

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Training begins, or goes on, at `step`."""

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of figures."""

    def validation(self, step: int, result: EvaluationResult) -> None:
        """A validation's whole result."""

    def underway(self, what: str, done: int, total: int) -> None:
        """A validation goes on: `what` it is, and how many of its images are done."""

    def message(self, text: str) -> None:
        """Something that the user should know."""

    def checkpoint(self, step: int) -> None:
        """A checkpoint of that step is in the run's directory; called in the thread that wrote it."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run's result."""

    def close(self, how: Ending) -> None:
        """The run is over here, after `finish` or without it; nothing follows."""
