"""Show the progress of a run that other processes train, from the files in its directory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cirkd_ray.report.listeners import BEGINS, SHOWN_LIVE, UNDER_WAY
from cirkd_ray.report.progress import Beside, RunProgress
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory, with_nan


class Tail:
    """New whole lines of a file that another process appends to, and may rewrite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Since the last look; at first none of what was there."""
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

    def rows(self) -> list[dict[str, Any]]:
        """The lines as figures of a step."""
        found = []
        for line in self.lines():
            with suppress(
                ValueError, TypeError, KeyError, AttributeError
            ):  # rewound while it was read: the rest of a line
                row = with_nan(json.loads(line))
                found.append({**row, "step": int(row["step"])})
        return found


class Follower:
    """Shows the progress of a run for the length of a `with` block.

    Args:
        directory: the run's.
        steps: its length.
        beside: runs that are trained together with it, by name.
        interval: seconds between two looks.
    """

    def __init__(
        self,
        directory: RunDirectory,
        steps: int,
        beside: Mapping[str, RunDirectory] | None = None,
        interval: float = 0.3,
    ) -> None:
        self.steps, self.interval, self.beside = steps, interval, beside or {}
        self._files = {name: _Files(run) for name, run in {"": directory, **self.beside}.items()}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cirkd-follow", daemon=True)

    def __enter__(self) -> Follower:
        self.show_in(RunProgress(self.steps))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._show()
        self.progress.finish()

    def show_in(self, progress: RunProgress) -> None:
        """Show everything there."""
        self.progress = progress
        self._shown: dict[str, Listener] = {"": progress}
        self._shown |= {name: Beside(name, progress) for name in self.beside}

    def _follow(self) -> None:
        while not self._done.wait(self.interval):
            self._show()

    def _show(self) -> None:
        for name, files in self._files.items():
            files.tell(self._shown[name])


class _Files:
    """What a run's files say since the last look."""

    def __init__(self, directory: RunDirectory) -> None:
        self.metrics, self.log = Tail(directory.metrics), Tail(directory.path / "log.txt")

    def tell(self, listener: Listener) -> None:
        for line in self.log.lines():
            text = line.split(" ", 2)[-1]
            if not text.startswith(SHOWN_LIVE):
                listener.message(text)
            elif begun := BEGINS.fullmatch(text):
                listener.start({}, int(begun[1]))
            elif going := UNDER_WAY.fullmatch(text.strip()):
                listener.underway(going[1], int(going[2]), int(going[3]))
        for row in self.metrics.rows():
            listener.metrics(row["step"], row)
