"""What `cirkd train` prints at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from cirkd_ray.report.tables import UNKNOWN, TextTable, over_classes, percent, rate
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Outcome

NETWORK_COLUMNS = ("", "model", "mIoU %", "parameters", "images/s")


def network_row(
    role: str,
    model: str,
    miou: float | None = None,
    parameters: int | None = None,
    images_per_second: float | None = None,
    classes: str = "",
) -> tuple[str, ...]:
    """A network's row of `NETWORK_COLUMNS`: its role is "teacher" or "student"; None is not known.

    `classes` says over how many the mIoU is.
    """
    millions = UNKNOWN if parameters is None else f"{parameters / 1e6:.2f} M"
    return role, model, percent(miou) + classes, millions, rate(images_per_second)


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Teacher and student beside each other, and where the files are."""
    teacher = _teacher_row(outcome)
    rows = ([teacher] if teacher else []) + [_run_row("student" if teacher else "network", outcome.result)]
    title = "Best validation mIoU (of so many classes); images/s of the last validation, all workers together"
    console.print(TextTable(NETWORK_COLUMNS, tuple(rows), title).rich())
    path = outcome.directory.path
    lines = [
        f"run          {path}",
        f"student      {path / 'student.safetensors'} and model.json (cirkd eval, predict, export)",
        f"TensorBoard  tensorboard --logdir {path / 'tensorboard'}",
    ]
    if outcome.teacher is not None:
        before = " (trained before)" if outcome.teacher_reused else ""
        lines.append(f"teacher      {outcome.teacher.path}{before}")
    console.print("\n".join(lines), highlight=False)


def _run_row(role: str, result: dict[str, Any]) -> tuple[str, ...]:
    """A run's best validation, and the speed of its last."""
    best, last = result.get("best") or {}, result.get("last") or {}
    figures = (best.get("miou"), result["parameters"], last.get("images_per_second"))
    over = over_classes(best).removesuffix(" classes")
    return network_row(role, result["model"], *figures, classes=f" ({over})" if over else "")


def _teacher_row(outcome: Outcome) -> tuple[str, ...] | None:
    """The teacher's row, as far as its files tell; None for a run without a teacher."""
    here = outcome.result.get("teacher")  # its figures on this run's validation split
    if outcome.teacher is not None:
        return _run_row("teacher", _scored(outcome.teacher.read_result() or {}, here))
    spec = outcome.directory.spec()
    if spec.distill is None or spec.teacher is None:
        return None
    weights = spec.teacher.weights
    if weights is None:
        return network_row("teacher", str(spec.teacher.module), (here or {}).get("miou"))
    folder = Path(weights)
    result = RunDirectory(folder).read_result() if folder.is_dir() else None
    if result is not None:
        return _run_row("teacher", _scored(result, here))
    card = folder / "model.json" if folder.is_dir() else folder
    known = card.suffix == ".json" and card.is_file()
    name = json.loads(card.read_text())["name"] if known else folder.name
    return network_row("teacher", name, (here or {}).get("miou"))


def _scored(result: dict[str, Any], here: dict[str, Any] | None) -> dict[str, Any]:
    """A teacher's result with its figures on the run's own validation split, where they are known."""
    return result if here is None else {**result, "best": here}
