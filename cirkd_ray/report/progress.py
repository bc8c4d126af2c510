"""How far long work is: a bar for anything that counts, and the live line of a run."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.train.reporter import Listener

PAUSE = 15.0
"""Seconds between two lines of a bar where there is no terminal."""
_MARKS = 20
"""Updates that the time left follows from."""


@contextmanager
def bar(total: int, text: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show how far a block of work is; the block calls what it gets with each number of finished items.

    Elsewhere than on a terminal, a plain line is written at most every `PAUSE` seconds.

    Args:
        total: number of items.
        text: what is done.
        unit: what the items are.
    """
    if not sys.stderr.isatty():
        yield _lines(total, text, unit)
        return
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)


def _lines(total: int, text: str, unit: str) -> Callable[[int], None]:
    finished, last = 0, time.monotonic()

    def advance(done: int) -> None:
        nonlocal finished, last
        finished += done
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            sys.stderr.write(f"{text}: {finished} of {total} {unit}\n")

    return advance


class RunProgress(Listener):
    """Shows where a run stands: step, loss, mIoU, images/s and the time that is left.

    On a terminal it is one line that is drawn anew; elsewhere each update is a line of text. The time left
    follows from the speed over the last updates alone, so it is right at once after a resume and after a
    change of speed.

    Args:
        total_steps: the run's length.
        stream: where to write; standard error by default, so that results on standard output stay clean.
        every: steps between two lines where there is no terminal. The first line, the last and those with a
            validation are always written.
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
        self.total_steps, self.every = total_steps, every
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self.said: set[str] = set()
        self._validated: Mapping[str, float] = {}
        self._since = 0.0
        self._written: int | None = None
        self._live = _live_line(self._stream, total_steps) if self._stream.isatty() else None

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the figures of `step`.

        Args:
            step: steps done so far.
            metrics: of these `loss/total` (or `loss`, or `total`), `miou` and `images_per_second` are shown.
                On a terminal the last mIoU stays in sight until there is a new one.
        """
        if self._marks and step < self._marks[-1][1]:
            self._marks.clear()  # started again from an earlier checkpoint
        self._marks.append((self._clock(), step))
        if validated := "miou" in metrics:
            self._validated = metrics
        figures = self._figures(metrics, self._validated if self._live or validated else {})
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=step, figures=figures)
        elif validated or self._due(step):
            self._written = step
            self._write(f"step {step}/{self.total_steps}  {figures}")

    def start(self, spec: Mapping[str, Any], step: int) -> None:
        """Training begins, or goes on after a restart: the time that this took says nothing of the speed."""
        self._marks.clear()
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=step)

    def underway(self, what: str, done: int, total: int) -> None:
        """How far a validation is; elsewhere than on a terminal only where it takes long."""
        if self._live is not None:
            self._live.update(self._live.task_ids[0], figures=f"{what}: {done} of {total} images")
        elif not done:
            self._since = self._clock()
        elif self._clock() - self._since >= PAUSE:
            self._since = self._clock()
            self._write(f"{what}: {done} of {total} images")

    def message(self, text: str) -> None:
        """A line of text above the live line, or among the plain ones."""
        self.said.add(text)
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            self._write(text)

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Leave the last state on the screen and stop drawing; calling it twice is fine."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def eta(self) -> float | None:
        """Seconds that are left, or None before two updates."""
        if len(self._marks) < 2:
            return None
        (start, first), (now, last) = self._marks[0], self._marks[-1]
        return (now - start) / (last - first) * max(0, self.total_steps - last) if last > first else None

    def _due(self, step: int) -> bool:
        first, last = self._written is None or step < self._written, step >= self.total_steps
        return first or last or step - (self._written or 0) >= self.every

    def _figures(self, metrics: Mapping[str, float], validated: Mapping[str, float]) -> str:
        loss = next((metrics[key] for key in ("loss/total", "loss", "total") if key in metrics), None)
        parts = [f"loss {loss:.4f}"] if loss is not None else []
        if not math.isnan(validated.get("miou", math.nan)):
            parts.append(_miou(validated))
        if "images_per_second" in metrics:
            parts.append(f"{metrics['images_per_second']:.1f} images/s")
        return "  ".join([*parts, f"ETA {duration(self.eta())}"])

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class Beside(Listener):
    """Shows of a run that is trained beside another: its validations, and what it alone has to say.

    Args:
        name: of the run.
        shown: the other one's progress.
    """

    def __init__(self, name: str, shown: RunProgress) -> None:
        self.name, self.shown = name, shown

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line for each validation."""
        if not math.isnan(metrics.get("miou", math.nan)):
            self.shown.message(f"{self.name}: step {step}  {_miou(metrics)}")

    def message(self, text: str) -> None:
        """With the run's name, unless the other run said the same."""
        if text not in self.shown.said:
            self.shown.message(f"{self.name}: {text}")


def _miou(metrics: Mapping[str, float]) -> str:
    classes = over_classes(metrics)
    return f"mIoU {metrics['miou'] * 100:.2f} %" + (f" ({classes})" if classes else "")


def _live_line(stream: TextIO, total_steps: int) -> Progress:
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
    )
    live = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
    live.add_task("train", total=total_steps, figures="starting")
    live.start()
    return live


def duration(seconds: float | None) -> str:
    """`1:02:03`, `4:05`, or `--` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
