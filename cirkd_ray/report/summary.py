"""What `cirkd train` says at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from cirkd_ray.report.tables import Compared, comparison
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Outcome


def compared(role: str, result: dict[str, Any]) -> Compared:
    """A run's row in the comparison: its best validation and the speed of its last."""
    best, last = result.get("best") or {}, result.get("last") or {}
    return Compared(
        role, result["model"], best.get("miou"), result["parameters"], last.get("images_per_second")
    )


def teacher_row(outcome: Outcome) -> Compared | None:
    """The teacher's row, as far as its own files tell; None for a run without a teacher."""
    if outcome.teacher is not None:
        return compared("teacher", outcome.teacher.read_result() or {})
    spec = outcome.directory.spec()
    if spec.distill is None or spec.teacher is None:
        return None
    weights = spec.teacher.weights
    if weights is None:
        return Compared("teacher", str(spec.teacher.module))
    folder = Path(weights)
    result = RunDirectory(folder).read_result() if folder.is_dir() else None
    if result is not None:
        return compared("teacher", result)
    card = folder / "model.json" if folder.is_dir() else folder
    name = json.loads(card.read_text())["name"] if card.suffix == ".json" and card.is_file() else folder.name
    return Compared("teacher", name)


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Teacher and student beside each other, and where things are."""
    teacher = teacher_row(outcome)
    student = compared("student" if teacher else "network", outcome.result)
    title = "Best validation mIoU; images/s of the last validation, all workers together"
    console.print(comparison([*([teacher] if teacher else []), student], title).rich())
    path = outcome.directory.path
    lines = [
        f"run          {path}",
        f"student      {path / 'student.safetensors'} and model.json (cirkd eval, predict, export)",
        f"TensorBoard  tensorboard --logdir {path / 'tensorboard'}",
    ]
    if outcome.teacher is not None:
        lines.append(
            f"teacher      {outcome.teacher.path}" + (" (trained before)" if outcome.teacher_reused else "")
        )
    console.print("\n".join(lines), highlight=False)
