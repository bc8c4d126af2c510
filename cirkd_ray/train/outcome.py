"""How things ended: `failure.json`, why a run or trial failed; `outcome.json`, how a trial or sweep ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cirkd_ray import errors
from cirkd_ray.errors import TrainingError, UserError, first_line
from cirkd_ray.files import read_json, write_text
from cirkd_ray.train.stop import Stopped

FAILURE = "failure.json"
"""In the folder of a run or of a trial: the error that ended it, so that every process can raise it again."""
OUTCOME = "outcome.json"
"""In the folder of a trial, a sweep or a comparison: `status` and `reason`; `failures` of the runs in it."""


def write_failure(folder: Path, error: Exception) -> None:
    """Write down why the run or trial in `folder` failed, if there is such a folder that can be written."""
    if not isinstance(error, UserError):
        error = TrainingError(f"{folder}: {type(error).__name__}: {first_line(error)}")
    if folder.is_dir():
        text = json.dumps({"kind": type(error).__name__, "message": str(error)})
        with suppress(OSError):  # its disk may be the reason
            write_text(folder / FAILURE, text)


@contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Write down why the block, which trains the run in `folder`, fails; what was there before is over."""
    with suppress(OSError):
        (folder / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        write_failure(folder, error)
        raise


def read_failure(folder: Path) -> UserError | None:
    """The error that was written down in `folder`, as the exception that it was."""
    found = read_json(folder / FAILURE)
    return None if found is None else getattr(errors, found["kind"], UserError)(found["message"])


def write_outcome(folder: Path, **facts: Any) -> None:
    """Add what is known now to the outcome in `folder`."""
    write_text(folder / OUTCOME, json.dumps({**(read_json(folder / OUTCOME) or {}), **facts}, indent=2))


def read_outcome(folder: Path) -> dict[str, Any]:
    """`status` ("running" until it ended), `reason` and `failures` (run -> why it failed) of `folder`.

    Sweeps and comparisons of earlier versions kept these in `failures.json` and `expired.txt`.
    """
    found = read_json(folder / OUTCOME) or {}
    earlier: dict[str, Any] = {"failures": read_json(folder / "failures.json") or {}}
    if (folder / "expired.txt").is_file():
        earlier |= {"status": "expired"}
    return {"status": "running", "reason": "", **earlier, **found}
