"""Passes standard input on as it comes, but of a traceback only its last line: `python jobs/one_line.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

JOINTS = ("During handling of the above", "The above exception was")


def without_tracebacks(lines: Iterable[str]) -> Iterator[str]:
    """The lines; of chained exceptions the last one's message."""
    inside, message = False, ""
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside, message = True, ""
        elif not inside:
            yield line
        elif line[:1] in (" ", "\n", "+", "|") or line.startswith(JOINTS):
            continue
        elif not message:
            message = line
        # else: the rest of a message of several lines
    if message:
        kind, colon, text = message.partition(": ")
        yield f"ray: {text if colon and ' ' not in kind else message}"


if __name__ == "__main__":
    for found in without_tracebacks(sys.stdin):
        sys.stderr.write(found)
        sys.stderr.flush()
