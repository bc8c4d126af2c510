"""What a run says while it trains, written to its `log.txt`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from cirkd_ray.evaluate.evaluation import over_classes
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


class RunLog(Listener):
    """Writes the run's messages and main figures to its `log.txt`, a line each.

    Args:
        directory: the run's.
        rank: of this process; None for the run's driver or controller.
    """

    def __init__(self, directory: RunDirectory, rank: int | None = None) -> None:
        self.directory, self.rank = directory, rank
        self._said, self._step = 0.0, None if rank is None else 0

    def start(self, spec: dict[str, Any], step: int) -> None:
        """The recipe's name, the first and the last step."""
        self._step = step
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
        self._step, rest = step, {name: value for name, value in metrics.items() if name != "step"}
        self.directory.log(f"{SHOWN_LIVE}step {step}: {', '.join(figures)}", self.rank, step, **rest)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The end."""
        self.message(f"{SHOWN_LIVE}finished")

    def message(self, text: str) -> None:
        """Append."""
        self.directory.log(text, self.rank, self._step)
