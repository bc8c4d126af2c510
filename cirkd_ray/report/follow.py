"""Show the progress of a run that other processes train, from the files in its directory."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from cirkd_ray.report.listeners import BEGINS, SHOWN_LIVE, UNDER_WAY
from cirkd_ray.report.progress import RunProgress
from cirkd_ray.train.rundir import RunDirectory


class _Tail:
    """New whole lines of a file that another process appends to, and may rewrite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

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
    """Shows the progress of a run for the length of a `with` block.

    Args:
        directory: the run's.
        steps: its length.
        interval: seconds between two looks.
    """

    def __init__(self, directory: RunDirectory, steps: int, interval: float = 0.3) -> None:
        self.metrics, self.log = _Tail(directory.metrics), _Tail(directory.path / "log.txt")
        self.steps, self.interval = steps, interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cirkd-follow", daemon=True)

    def __enter__(self) -> Follower:
        self.progress = RunProgress(self.steps)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._show()
        self.progress.finish()

    def _follow(self) -> None:
        while not self._done.wait(self.interval):
            self._show()

    def _show(self) -> None:
        for line in self.log.lines():
            text = line.split(" ", 2)[-1]
            if not text.startswith(SHOWN_LIVE):
                self.progress.message(text)
            elif begun := BEGINS.fullmatch(text):
                self.progress.start({}, int(begun[1]))
            elif going := UNDER_WAY.fullmatch(text.strip()):
                self.progress.underway(going[1], int(going[2]), int(going[3]))
        for line in self.metrics.lines():
            try:
                row = json.loads(line)
                step = int(row["step"])
            except (ValueError, TypeError, KeyError):  # rewound while it was read: the rest of a line
                continue
            self.progress.metrics(step, row)
