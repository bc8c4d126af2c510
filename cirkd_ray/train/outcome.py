"""How things ended: `failure.json`, why a run or trial failed; `outcome.json`, how a trial or sweep ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cirkd_ray import errors
from cirkd_ray.errors import UserError
from cirkd_ray.files import read_json, write_text

FAILURE = "failure.json"
"""In the folder of a run or of a trial: the error that ended it, so that every process can raise it again."""
OUTCOME = "outcome.json"
"""In the folder of a trial, a sweep or a comparison: `status` and `reason`; `failures` of the runs in it."""


def write_failure(folder: Path, error: UserError) -> None:
    """Write down why the run or trial in `folder` failed, if there is such a folder."""
    if folder.is_dir():
        text = json.dumps({"kind": type(error).__name__, "message": str(error)})
        write_text(folder / FAILURE, text)


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
