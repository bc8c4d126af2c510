"""How far long work is: a bar on terminals, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 15.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def bar(total: int, text: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show how far a block of work is; the block calls what it gets with each number of finished items.

    Args:
        total: number of items.
        text: what is done.
        unit: what the items are.
    """
    if not sys.stderr.isatty():
        yield _lines(total, text, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)


def _lines(total: int, text: str, unit: str) -> Callable[[int], None]:
    """Write a plain line at most every `PAUSE` seconds."""
    finished, last = 0, time.monotonic()

    def advance(done: int) -> None:
        nonlocal finished, last
        finished += done
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            sys.stderr.write(f"{text}: {finished} of {total} {unit}\n")

    return advance
