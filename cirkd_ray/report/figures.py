"""Figures made with matplotlib's Agg canvas; nothing touches pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UInt8 = NDArray[np.uint8]

_NUMBERS_UP_TO = 30


def confusion_figure(matrix: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix, each row in percent of the true class's pixels.

    Args:
        matrix: K x K counts, row = true class, column = predicted class. Rows without pixels stay empty.
        names: K class names.
        title: text above.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix of shape {counts.shape} for {len(names)} class names")
    totals = counts.sum(1, keepdims=True)
    share = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0) * 100
    many = len(names) > _NUMBERS_UP_TO
    side = min(24.0, 3.0 + (0.16 if many else 0.42) * len(names))
    figure = Figure(figsize=(side + 1.2, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    font = 5 if many else 8
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if not many:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                color = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the true class's pixels")
    if title:
        axes.set_title(title)
    return figure


def to_image(figure: Figure) -> UInt8:
    """A figure as pixels: H x W x 3 uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: UInt8 = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels
