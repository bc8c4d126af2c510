"""The live line of a run on a terminal, and plain lines in logs."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

_WINDOW = 20


class Progress:
    """Shows where a run stands: step, loss, mIoU, images/s and the time that is left.

    On a terminal it is one line that is drawn anew; elsewhere each update is a line of text. The time left
    follows from the speed over the last updates alone, so it is right at once after a resume and after a
    change of speed.

    Args:
        total_steps: the run's length.
        stream: where to write; standard error by default, so that results on standard output stay clean.
        every: elsewhere than on a terminal, write a line only where the run has gone on by so many steps (and
            always the first, the last and those with a validation).
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        every: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.every = every
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._miou: float | None = None
        self._written: int | None = None
        self._live: RichProgress | None = None
        self._task: TaskID | None = None
        if self._stream.isatty():
            self._start_live()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of `step`.

        Args:
            step: steps done so far.
            metrics: of these are shown `loss/total` (or `loss`, or `total`), `miou` and `images_per_second`.
                On a terminal the last mIoU stays in sight until there is a new one.
        """
        if self._marks and step < self._marks[-1][1]:
            self._marks.clear()  # started again from an earlier checkpoint
        self._marks.append((self._clock(), step))
        validated = "miou" in metrics
        self._miou = metrics["miou"] if validated else self._miou
        figures = self._figures(metrics, self._miou if self._live or validated else None)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, figures=figures)
        elif self._due(step, validated):
            self._written = step
            self._write(f"step {step}/{self.total_steps}  {figures}")

    def message(self, text: str) -> None:
        """A line of text above the live line, or among the plain ones."""
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            self._write(text)

    def close(self) -> None:
        """Leave the last state on the screen and stop drawing; calling it twice is fine."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def eta(self) -> float | None:
        """Seconds that are left, or None before two updates."""
        if len(self._marks) < 2:
            return None
        (start, first), (now, last) = self._marks[0], self._marks[-1]
        if last <= first:
            return None
        return (now - start) / (last - first) * max(0, self.total_steps - last)

    def _start_live(self) -> None:
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
        )
        self._live = RichProgress(*columns, console=Console(file=self._stream), refresh_per_second=4)
        self._task = self._live.add_task("train", total=self.total_steps, figures="starting")
        self._live.start()

    def _due(self, step: int, validated: bool) -> bool:
        if self._written is None or validated or step >= self.total_steps or step < self._written:
            return True
        return step - self._written >= self.every

    def _figures(self, metrics: Mapping[str, float], miou: float | None) -> str:
        loss = next((metrics[key] for key in ("loss/total", "loss", "total") if key in metrics), None)
        parts = [f"loss {loss:.4f}" if loss is not None else "", _percent(miou)]
        if "images_per_second" in metrics:
            parts.append(f"{metrics['images_per_second']:.1f} images/s")
        parts.append(f"ETA {duration(self.eta())}")
        return "  ".join(part for part in parts if part)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def duration(seconds: float | None) -> str:
    """`1:02:03`, `4:05`, or `--` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _percent(miou: float | None) -> str:
    return "" if miou is None or math.isnan(miou) else f"mIoU {miou * 100:.2f} %"
