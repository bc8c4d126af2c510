"""How far a download is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def steps(sizes: bool = False) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Show a bar for each step of a download, on terminals only.

    The block calls what it gets with a step's name, what is done of it, and its total where that is known.

    Args:
        sizes: show bytes instead of percents.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if sizes else TextColumn("{task.percentage:>3.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:

        def tell(text: str, done: int, total: int | None) -> None:
            if text not in tasks:
                tasks[text] = progress.add_task(text, total=total)
            progress.update(tasks[text], completed=done, total=total)

        yield tell
