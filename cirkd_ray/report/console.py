"""Where commands print: a terminal, or a file or log in which no table should be cut."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

LOG_WIDTH = 200
"""Characters a line where there is no terminal."""


def output(**options: Any) -> Console:
    """Standard output; `options` are those of rich's Console."""
    console = Console(soft_wrap=True, **options)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(soft_wrap=True, width=LOG_WIDTH, **options)
