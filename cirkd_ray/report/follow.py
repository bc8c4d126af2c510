"""Following a run from outside, by the files that it writes: works wherever its directory can be read."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cirkd_ray.report.progress import Progress
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory

_FIGURES = "  "
"""Before lines of `log.txt` that a follower shows otherwise: it draws the figures from the metrics."""


class RunLog(Listener):
    """Writes what a run says and reports to its `log.txt`, a line each."""

    def __init__(self, directory: RunDirectory) -> None:
        self.path = directory.path / "log.txt"

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Of which recipe, from where to where."""
        self.message(f"{_FIGURES}{spec['name']}: step {step} to {spec['train']['steps']}")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The main figures of a line of metrics."""
        names = {"loss/total": "loss", "miou": "mIoU", "images_per_second": "images/s"}
        figures = [f"{text} {metrics[name]:.4g}" for name, text in names.items() if name in metrics]
        self.message(f"{_FIGURES}step {step}: {', '.join(figures)}")

    def finish(self, result: Mapping[str, Any]) -> None:
        """The end."""
        self.message(f"{_FIGURES}finished")

    def message(self, text: str) -> None:
        """Append."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


class _Tail:
    """New whole lines of a file that another process appends to, and may rewrite."""

    def __init__(self, path: Path, from_end: bool) -> None:
        self.path = path
        self.position = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            # A shorter file was rewound by a resumed run: what is left was shown before.
            self.position = min(self.position, file.seek(0, os.SEEK_END))
            file.seek(self.position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


class Follower:
    """Shows the progress of a run that other processes do, for the length of a `with` block.

    Args:
        directory: the run's.
        steps: its length.
        interval: seconds between two looks.
    """

    def __init__(self, directory: RunDirectory, steps: int, interval: float = 0.3) -> None:
        self.metrics = _Tail(directory.metrics, from_end=True)
        self.log = _Tail(directory.path / "log.txt", from_end=True)
        self.steps, self.interval = steps, interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cirkd-follow", daemon=True)

    def __enter__(self) -> Follower:
        self.progress = Progress(self.steps)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._show()
        self.progress.close()

    def _follow(self) -> None:
        while not self._done.wait(self.interval):
            self._show()

    def _show(self) -> None:
        for line in self.log.lines():
            text = line.split(" ", 2)[-1]
            if not text.startswith(_FIGURES):
                self.progress.message(text)
        for line in self.metrics.lines():
            try:
                row = json.loads(line)
                step = int(row["step"])
            except (ValueError, TypeError, KeyError):  # rewound while it was read: the rest of a line
                continue
            self.progress.update(step, row)
