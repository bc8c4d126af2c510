"""A single run's report: curves from its files, and what its networks see from some validation images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.compare.statistics import share_of_gap
from cirkd_ray.report.figures import confusion_figure
from cirkd_ray.report.page import Page
from cirkd_ray.report.run_images import Seen, look
from cirkd_ray.report.summary import NETWORK_COLUMNS, network_row
from cirkd_ray.report.tables import UNKNOWN, TextTable, percent
from cirkd_ray.train.rundir import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_run(
    directory: RunDirectory, images: int, on_images: Callable[[int], None] = lambda count: None
) -> Path:
    """Write `report/` into the run's folder; returns the page.

    Args:
        directory: of a run that has validated at least once.
        images: validation images that its networks are shown; 0: the page tells what the files hold.
        on_images: is told of images that have been seen.

    Raises:
        UserError: the data or the weights of a network cannot be read.
    """
    spec, result = directory.spec(), directory.read_result() or {}
    page = Page(directory.path / "report", f"Run {directory.path.name}", spec.description)
    page.table(TextTable(NETWORK_COLUMNS, tuple(_networks(directory, result)), "Best validation"))
    page.note(_about(directory, result))
    page.heading("Curves")
    page.figure("curves", curves(directory, result), "Validations above, loss terms below.")
    if images and (directory.path / "model.json").is_file():
        _with_images(page, look(directory, images, on_images))
    page.heading("Recipe")
    page.code(directory.recipe.read_text(encoding="utf-8"), "run.yaml")
    return page.write()


def _networks(directory: RunDirectory, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for the teacher, the student alone and the student."""
    spec, rows = directory.spec(), []
    if teacher := result.get("teacher"):
        source = spec.teacher and (spec.teacher.weights or spec.teacher.module or spec.teacher.train)
        rows.append(network_row("teacher", str(source or UNKNOWN), teacher.get("miou")))
    for role, block in (("alone", result.get("baseline")), ("student", result)):
        if block:
            best = block.get("best") or {}
            rows.append(network_row(role, spec.model.name, best.get("miou"), block.get("parameters")))
    if not result:
        validated = [row["miou"] for row in directory.read_metrics() if "miou" in row]
        rows.append(network_row("student", spec.model.name, max(validated, default=None)))
    return rows


def _about(directory: RunDirectory, result: dict[str, Any]) -> str:
    """Steps, time and speed."""
    rows = directory.read_metrics()
    steps = rows[-1]["step"] if rows else 0
    done = f"{steps} of {directory.spec().train.steps} steps"
    if not result:
        return f"{done}; the run is not finished"
    return f"{done}, {result['seconds'] / 60:.1f} minutes, {result['images_per_second']:.1f} images/s"


def curves(directory: RunDirectory, result: dict[str, Any]) -> Figure:
    """mIoU over steps beside baseline and teacher; every unweighted loss term on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 7.2), layout="constrained")
    scores, losses = figure.subplots(2, 1, sharex=True)
    rows, other = directory.read_metrics(), baseline_of(directory, result)
    for found, color, label in (
        (other.read_metrics() if other else [], "0.6", "alone"),
        (rows, "C0", "student"),
    ):
        validated = [(row["step"], 100 * row["miou"]) for row in found if "miou" in row]
        if validated:
            scores.plot(*zip(*validated, strict=True), "o-", color=color, label=label, markersize=3)
    if result.get("teacher"):
        scores.axhline(100 * result["teacher"]["miou"], color="C3", linestyle="--", label="teacher")
    scores.set(ylabel="mIoU %")
    for name in dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")):
        points = [(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        if points:
            label = "total, weighted" if name == "loss/total" else name.removeprefix("loss/")
            losses.plot(*zip(*points, strict=True), label=label, linewidth=1)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    for axes in (scores, losses):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def baseline_of(directory: RunDirectory, result: dict[str, Any]) -> RunDirectory | None:
    """The run without distillation that was trained beside it, if it is still there."""
    block = result.get("baseline")
    if not block:
        return None
    found = RunDirectory(os.path.normpath(directory.path / block["path"]))
    return found if found.recipe.is_file() else None


def _with_images(page: Page, seen: Seen) -> None:
    """What the networks make of images."""
    page.heading(f"Classes, on {seen.images} validation images")
    page.table(class_table(seen))
    page.heading("Confusion of the student")
    student = seen.networks["student"]
    page.figure("confusion", confusion_figure(student.matrix, seen.classes.names))
    for title, shown, caption in (
        ("Best images", seen.best, "The highest mIoU over the classes of the image."),
        ("Worst images", seen.worst, "The lowest."),
    ):
        if shown is not None:
            page.heading(title)
            page.picture(title.split()[0].lower(), shown, caption)
    for title, name, figure, caption in (
        ("Relations", "relations", seen.relations, RELATIONS),
        ("Class embeddings", "embeddings", seen.embeddings, EMBEDDINGS),
    ):
        if figure is not None:
            page.heading(title)
            page.figure(name, figure, caption)


RELATIONS = (
    "The cosine between the feature of one pixel (cross, left) and those of all pixels of another image: "
    "what cross-image distillation teaches the student to copy."
)
EMBEDDINGS = (
    "The mean feature of each class in each image, normalised, on the first two principal components of each "
    "network's own. Classes that a network tells apart form groups."
)


def class_table(seen: Seen) -> TextTable:
    """IoU of each class by network, and the share of the gap between teacher and baseline that is closed."""
    names = list(seen.networks)
    gap = {"student alone", "teacher"} <= set(names)
    rows = []
    for k, name in enumerate(seen.classes.names):
        iou = {network: float(seen.networks[network].iou[k]) for network in names}
        cells = [percent(iou[network]) for network in names]
        if gap:
            closed = share_of_gap(iou["student alone"], iou["student"], iou["teacher"])
            cells.append(UNKNOWN if math.isnan(closed) else f"{100 * closed:.0f}")
        rows.append((name, *cells))
    means = [percent(seen.networks[network].miou) for network in names]
    rows.append(("mean", *means, *([UNKNOWN] if gap else [])))
    return TextTable(
        ("class", *(f"{n} IoU %" for n in names), *(["gap closed %"] if gap else [])), tuple(rows)
    )
