"""Tables for terminals and for Markdown, from one description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cirkd_ray.evaluate.bootstrap import ConfidenceInterval
from cirkd_ray.evaluate.evaluation import COUNTS, EvaluationResult, over_classes

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "-"


@dataclass(frozen=True)
class TextTable:
    """A table of texts: the first column is aligned left, the others right.

    Attributes:
        columns: their names.
        rows: a text for each column.
        title: a line above the table, if any.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells in a table of {len(self.columns)} columns: {row}")

    def rich(self) -> Table:
        """For `rich.console.Console().print`."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title or None, title_justify="left")
        for number, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """A Markdown table, with the title as a line of bold text above."""
        rule = ("---", *["---:"] * (len(self.columns) - 1))
        head = f"**{_escaped(self.title)}**\n\n" if self.title else ""
        lines = (" | ".join(map(_escaped, cells)) for cells in (self.columns, rule, *self.rows))
        return head + "".join(f"| {line} |\n" for line in lines)


def per_class(result: EvaluationResult, title: str = "") -> TextTable:
    """A row per class: share of the labelled pixels, IoU, accuracy (recall), boundary IoU if any."""
    matrix = result.confusion.matrix.cpu().double()
    share = (matrix.sum(1) / matrix.sum()).tolist()
    figures = [share, result.confusion.iou().tolist(), result.confusion.class_accuracy().tolist()]
    columns = ["class", "pixels %", "IoU %", "accuracy %"]
    if result.boundary is not None:
        figures.append(result.boundary.iou().tolist())
        columns.append("boundary IoU %")
    rows = [
        (name, *map(percent, values)) for name, *values in zip(result.classes.names, *figures, strict=True)
    ]
    return TextTable(tuple(columns), tuple(rows), title)


def scores(
    result: EvaluationResult, title: str = "", interval: ConfidenceInterval | None = None
) -> TextTable:
    """The scores over all classes, a row each; below the mean IoU its confidence interval."""
    names = {
        "miou": "mIoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_class_accuracy": "mean class accuracy",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "boundary_iou": "boundary IoU",
    }
    metrics = result.metrics()
    names["miou"] += f" ({over_classes(metrics)})"
    shown = {key: value for key, value in metrics.items() if not (key.startswith("iou/") or key in COUNTS)}
    rows = [(names.get(key, key), percent(value)) for key, value in shown.items()]
    if interval is not None:
        bounds = f"{percent(interval.low)} to {percent(interval.high)}"
        rows.insert(1, (f"mIoU, {interval.confidence * 100:g} % interval", bounds))
    return TextTable(("score", "%"), tuple(rows), title)


def percent(share: float | None) -> str:
    """0.4567 -> `45.67`."""
    return UNKNOWN if share is None or math.isnan(share) else f"{share * 100:.2f}"


def rate(value: float | None) -> str:
    """Three digits that matter, such as `0.52`, `12.3`, `1234`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
