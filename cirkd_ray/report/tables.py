"""Tables for terminals and for Markdown, from one description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cirkd_ray.evaluate.evaluation import EvaluationResult

if TYPE_CHECKING:
    from rich.table import Table

UNKNOWN = "-"


@dataclass(frozen=True)
class Sheet:
    """A table of texts: the first column is aligned left, the others right.

    Attributes:
        columns: their names.
        rows: as many texts each as there are columns.
        title: a line above it, if any.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}"
                )

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
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [_markdown_row(cells) for cells in (self.columns, rule, *self.rows)]
        head = [f"**{_escaped(self.title)}**", ""] if self.title else []
        return "\n".join([*head, *lines]) + "\n"


class Compared(NamedTuple):
    """A network in a comparison; None where a figure is not known.

    Attributes:
        role: "teacher", "student", "baseline", ...
        model: its name.
        miou: 0..1.
        parameters: their number.
        images_per_second: in evaluation, unless the table's title says otherwise.
    """

    role: str
    model: str
    miou: float | None = None
    parameters: int | None = None
    images_per_second: float | None = None


def comparison(networks: Sequence[Compared], title: str = "") -> Sheet:
    """Teacher, student and others beside each other: mIoU, parameters, images/s."""
    rows = tuple(
        (n.role, n.model, percent(n.miou), millions(n.parameters), rate(n.images_per_second))
        for n in networks
    )
    return Sheet(("", "model", "mIoU %", "parameters", "images/s"), rows, title)


def per_class(result: EvaluationResult, title: str = "") -> Sheet:
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
    return Sheet(tuple(columns), tuple(rows), title)


def scores(result: EvaluationResult, title: str = "") -> Sheet:
    """The scores over all classes, a row each."""
    metrics = {key: value for key, value in result.metrics().items() if not key.startswith("iou/")}
    names = {
        "miou": "mIoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_class_accuracy": "mean class accuracy",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "boundary_iou": "boundary IoU",
    }
    rows = tuple((names.get(key, key), percent(value)) for key, value in metrics.items())
    return Sheet(("score", "%"), rows, title)


def percent(share: float | None) -> str:
    """0.4567 -> `45.67`."""
    return UNKNOWN if share is None or math.isnan(share) else f"{share * 100:.2f}"


def millions(count: int | None) -> str:
    """12 345 678 -> `12.35 M`."""
    return UNKNOWN if count is None else f"{count / 1e6:.2f} M"


def rate(value: float | None) -> str:
    """Three digits that matter, such as `0.52`, `12.3`, `1234`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
