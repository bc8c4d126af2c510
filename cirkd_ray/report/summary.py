"""What `cirkd train` prints at its end."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rich.console import Console

from cirkd_ray.compare.statistics import share_of_gap
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.report.comparison import write_comparison
from cirkd_ray.report.tables import UNKNOWN, TextTable, percent
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Outcome
from cirkd_ray.weights import load_model
from cirkd_ray.weights.card import find_card, on_this_machine, shipped

NETWORK_COLUMNS = ("", "model", "mIoU %", "parameters")


def network_row(
    role: str,
    model: str,
    miou: float | None = None,
    parameters: int | None = None,
    classes: str = "",
) -> tuple[str, ...]:
    """A network's row of `NETWORK_COLUMNS`: its role is "teacher" or "student"; None is not known.

    `classes` says over how many the mIoU is.
    """
    millions = UNKNOWN if parameters is None else f"{parameters / 1e6:.2f} M"
    return role, model, percent(miou) + classes, millions


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Teacher, student alone and distilled student beside each other, and where the files are."""
    title = "Best validation mIoU (over so many of the classes)"
    console.print(TextTable(NETWORK_COLUMNS, tuple(outcome_rows(outcome)), title).rich())
    closed = gap_closed(outcome)
    if closed is not None:
        console.print(closed, highlight=False)
    path = outcome.directory.path
    lines = [
        f"run          {path}",
        f"student      {path / 'student.safetensors'} and model.json (cirkd eval, predict, export)",
        f"TensorBoard  tensorboard --logdir {path / 'tensorboard'}",
    ]
    for name, directory in (("teacher", outcome.teacher), ("alone", outcome.baseline)):
        if directory is not None:
            before = " (trained before)" if directory in outcome.reused else ""
            lines.append(f"{name:12} {directory.path}{before}")
    picture = write_comparison(outcome)
    if picture is not None:
        lines.append(f"picture      {picture}")
    console.print("\n".join(lines), highlight=False)


def outcome_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row of `NETWORK_COLUMNS` for each network of the run."""
    teacher, student = teacher_figures(outcome), run_figures(outcome.result)
    if teacher is None:
        return [network_row("network", *student)]
    rows = [network_row("teacher", *teacher)]
    if outcome.baseline is None:
        return [*rows, network_row("student", *student)]
    alone = run_figures(outcome.baseline.read_result() or {})
    return [*rows, network_row("student alone", *alone), network_row("student distilled", *student)]


def gap_closed(outcome: Outcome) -> str | None:
    """What distillation brought, in points of mIoU and as a share of the student's distance to its teacher.

    There is no share of a distance below `LEAST_GAP`. Classes that the student never gets right are told.
    None for a run without a baseline.
    """
    if outcome.baseline is None:
        return None
    alone = run_figures(outcome.baseline.read_result() or {}).miou
    distilled = run_figures(outcome.result).miou
    if alone is None or distilled is None:
        return None
    text = f"distillation {100 * (distilled - alone):+.2f} points of mIoU"
    teacher = teacher_figures(outcome)
    if teacher is not None and teacher.miou is not None:
        share = share_of_gap(alone, distilled, teacher.miou)
        if not math.isnan(share):
            text += f": {100 * share:.0f} % of the gap between the student alone and its teacher"
        elif teacher.miou > alone:
            text += f"; the teacher is only {100 * (teacher.miou - alone):.2f} ahead of the student alone"
    never = [name for name, iou in classes_of(outcome.result) if iou == 0]
    if never:
        shown = ", ".join(never[:5]) + (", ..." if len(never) > 5 else "")
        text += f"\nthe distilled student's IoU of {shown} is 0: more steps or other data may turn this"
    return text + "\n(one seed: `cirkd compare --seeds 3` tells it from chance)"


class Figures(NamedTuple):
    """A network's name, best mIoU, parameters, and over how many classes the mIoU is, as ` (7 of 8)`."""

    name: str
    miou: float | None = None
    parameters: int | None = None
    classes: str = ""


def classes_of(result: dict[str, Any]) -> list[tuple[str, float]]:
    """Name and IoU of each class at a run's best validation."""
    best = result.get("best") or {}
    return [(key.removeprefix("iou/"), value) for key, value in best.items() if key.startswith("iou/")]


def run_figures(result: dict[str, Any]) -> Figures:
    """Of a run's best validation."""
    best = result.get("best") or {}
    return Figures(result.get("model", UNKNOWN), best.get("miou"), result.get("parameters"), _over(best))


def _over(scores: dict[str, Any]) -> str:
    """` (7 of 8)`: the classes that a mean is over; empty where that is not known."""
    over = over_classes(scores).removesuffix(" classes")
    return f" ({over})" if over else ""


def teacher_figures(outcome: Outcome) -> Figures | None:
    """Of the teacher, as far as its files tell; None for a run without a teacher.

    The score on a card counts where it is of this run's data set.
    """
    found, here = _told_figures(outcome), outcome.result.get("teacher")
    if found is None or here is None:
        return found
    return found._replace(miou=here["miou"], classes=_over(here))


def _told_figures(outcome: Outcome) -> Figures | None:
    """What the teacher's own run or card tells; its score need not be of this run's validation split."""
    spec = outcome.directory.spec()
    if outcome.teacher is not None:
        return run_figures(outcome.teacher.read_result() or {})
    if spec.distill is None or spec.teacher is None:
        return None
    weights = spec.teacher.weights
    if weights is None:
        return Figures(str(spec.teacher.module))
    folder = on_this_machine(shipped(weights))
    result = RunDirectory(folder).read_result() if folder.is_dir() else None
    if result is not None:
        return run_figures(result)
    if find_card(weights) is None:
        return Figures(folder.name)
    loaded = load_model(weights)
    card, count = loaded.info, sum(p.numel() for p in loaded.model.parameters())
    scores = card.get("validation") or {} if card.get("data") == spec.data.name else {}
    return Figures(card["name"], scores.get("miou"), count, _over(scores))
