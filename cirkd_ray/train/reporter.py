"""Where the loop hands its figures and checkpoints: the one seam between training and a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.train.checkpoint import prune_checkpoints


class Reporter(Protocol):
    """Called on every rank at the same steps."""

    def checkpoint_folder(self, name: str) -> Path:
        """Where the main rank writes the checkpoint of that name, before `report` takes it over."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, last: bool) -> None:
        """After a validation or a checkpoint: figures of all ranks, and on the main rank the checkpoint.

        The last step makes two reports with `last`, of its checkpoint and of its validation. Each returns
        when all checkpoints are in the run's directory.
        """


class LocalReporter:
    """A plain process: checkpoints stay where they are written, all but the newest are deleted.

    Args:
        folder: the run's `checkpoints`.
        keep: how many.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def checkpoint_folder(self, name: str) -> Path:
        """Inside the run's directory."""
        return self.folder / name

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, last: bool) -> None:
        """Prune."""
        if checkpoint is not None:
            prune_checkpoints(self.folder, self.keep)


class Listener:
    """Follows a run on its main rank; every method may be left out."""

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

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run's result."""
