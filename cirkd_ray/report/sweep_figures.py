"""A sweep's figures.

Optuna's plots do not show what these do: stopped trials, controls, exchanges of a population, the best trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from cirkd_ray.report.sweep import (
    CONTROLS,
    SHARES,
    figure_name,
    last_figures,
    short_names,
    value_text,
    varied,
)
from cirkd_ray.report.sweep_study import pareto_front
from cirkd_ray.sweep.folder import SweepData, Trial
from cirkd_ray.sweep.parameters import Parameter

_COLORS = {"stopped": "0.65", "expired": "0.65", "failed": "C1"}
"""Of trials that did not come to their end."""
_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def learning_curves(data: SweepData) -> Figure:
    """The metric over every trial's steps; crosses where stopped, squares where weights were taken over."""
    figure = _figure(9.5, 4.6)
    axes = figure.subplots()
    best = data.ranked[0] if data.ranked else None
    for trial in data.trials:
        if trial.rows:
            _curve(axes, data, trial, trial is best)
    for name, runs in sorted(data.controls.items()):
        ends = [_shown(value, data.metric) for value in last_figures(runs, data.metric)]
        style = {"baseline": ":", "defaults": "--"}.get(name, "-.")
        if ends:
            label = CONTROLS.get(name, f"control: {name}")
            axes.axhline(float(np.mean(ends)), color="k", linestyle=style, linewidth=1, label=label)
    axes.set(xlabel="step", ylabel=figure_name(data.metric))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def _curve(axes: Axes, data: SweepData, trial: Trial, best: bool) -> None:
    steps = [row["step"] for row in trial.rows]
    values = [_shown(row.get(data.metric), data.metric) for row in trial.rows]
    color = "C3" if best else _COLORS.get(trial.status, "C0")
    label, width, opacity, order = (f"best: {trial.id}", 2.2, 1.0, 3) if best else (None, 1.0, 0.7, 2)
    axes.plot(steps, values, color=color, linewidth=width, alpha=opacity, zorder=order, label=label)
    if trial.status in _COLORS:
        axes.plot(steps[-1], values[-1], "x", color=color, markersize=6)
    for step, _ in trial.parents:
        at = min(range(len(steps)), key=lambda i: abs(steps[i] - step))
        axes.plot(steps[at], values[at], "s", color=color, markersize=4)


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """Bars, largest on top."""
    figure = _figure(8.0, 0.9 + 0.36 * len(shares))
    axes = figure.subplots()
    bars = axes.barh(list(short_names(list(shares)).values()), list(shares.values()), color="C0")
    axes.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, max([*shares.values(), 0.1]) * 1.12), xlabel="share of the metric's variance")
    return figure


def parallel_coordinates(data: SweepData) -> Figure:
    """A line a trial through its values, coloured by the metric; the best is drawn thick.

    A line goes on over a setting that does not count for its trial.
    """
    paths, names = varied(data), short_names(varied(data))
    figure = _figure(max(7.0, 1.5 * (len(paths) + 1)), 4.8)
    axes = figure.subplots()
    trials = list(reversed(data.ranked))
    scores = [trial.figure(data.metric) for trial in trials]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    scales = [Scale(data.space["parameters"][path], [t.values.get(path) for t in trials]) for path in paths]
    for trial, score in zip(trials, scores, strict=True):
        share = (score - low) / (high - low) if high > low else 0.5
        heights = [scale.height(trial.values.get(path)) for scale, path in zip(scales, paths, strict=True)]
        known = [(column, h) for column, h in enumerate([*heights, share]) if not math.isnan(h)]
        color = colormaps["viridis"](0.9 * (share if data.sign > 0 else 1 - share))  # no pale yellow
        best = trial is trials[-1]
        look: dict[str, Any] = {"color": "C3", "linewidth": 2.5} if best else {"color": color, "alpha": 0.75}
        axes.plot(*zip(*known, strict=True), **{"marker": "o", "markersize": 3, "linewidth": 1.0, **look})
    ends = [(h, value_text(_shown(value, data.metric))) for h, value in ((0.0, low), (1.0, high))]
    place: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "zorder": 4}
    for column, ticks in enumerate([*(scale.ticks() for scale in scales), ends]):
        for height, text in ticks:
            axes.annotate(_short(text), (column, height), fontsize=7, bbox=_BOX, **place)
    labels = [_folded(name) for name in (*(names[p] for p in paths), figure_name(data.metric))]
    axes.set_xticks(range(len(paths) + 1), labels, fontsize=8)
    axes.set(yticks=[], xlim=(-0.2, len(paths) + 0.5))
    axes.grid(axis="x", alpha=0.4)
    return figure


def slices(data: SweepData) -> Figure:
    """The metric over each parameter: full dots ran to their end, rings were stopped."""
    names = short_names(varied(data))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(3.1 * columns + 0.6, 2.7 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (path, name) in zip(grid, names.items(), strict=False):
        _slice(axes, data, path)
        axes.set_xlabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(figure_name(data.metric), fontsize=8)
    return figure


def _slice(axes: Axes, data: SweepData, path: str) -> None:
    trials = [trial for trial in data.ranked if trial.values.get(path) is not None]
    scale = Scale(data.space["parameters"][path], [trial.values[path] for trial in trials])
    for trial in trials:
        face = "C0" if trial.status == "finished" else "none"
        point = (scale.height(trial.values[path]), _shown(trial.figure(data.metric), data.metric))
        axes.plot(*point, "o", color="C0", markersize=5, markerfacecolor=face, alpha=0.8)
    ticks = {height: _short(text) for height, text in scale.ticks()}
    slanted: dict[str, Any] = {"rotation": 25, "ha": "right"} if len("".join(ticks.values())) > 20 else {}
    axes.set_xticks(list(ticks), list(ticks.values()), **slanted)
    room = 0.3 if scale.options else 0.05
    axes.set_xlim(-room, 1 + room)


def pareto_figure(data: SweepData) -> Figure:
    """Second metric against the first; the front is joined."""
    second, first = reversed(list(data.space["metric"])[:2])
    figure = _figure(7.0, 4.6)
    axes = figure.subplots()
    points = {t.id: (_shown(t.figure(second), second), _shown(t.figure(first), first)) for t in data.ranked}
    front = sorted(pareto_front(data), key=lambda trial: points[trial.id])
    axes.plot(*np.reshape(list(points.values()), (-1, 2)).T, "o", color="0.6")
    axes.plot(*np.reshape([points[trial.id] for trial in front], (-1, 2)).T, "o-", color="C3")
    axes.margins(x=0.15)
    middle = sum(axes.get_xlim()) / 2
    for trial in front:
        text = _short(f"{trial.id}: {', '.join(map(value_text, trial.values.values()))}", 48)
        left = points[trial.id][0] > middle  # towards the middle, where there is room for it
        place: dict[str, Any] = {"xytext": (-6 if left else 6, -10), "ha": "right" if left else "left"}
        axes.annotate(
            text, points[trial.id], textcoords="offset points", fontsize=7, bbox=_BOX, zorder=4, **place
        )
    axes.set(xlabel=figure_name(second), ylabel=figure_name(first))
    axes.grid(alpha=0.3)
    return figure


class Scale:
    """Values of one parameter on 0..1: logarithmic, linear, or options in order.

    Attributes:
        options: those that were tried, as text -> as the tables show it; empty for numbers.
        norm: number -> 0..1.
    """

    def __init__(self, parameter: Mapping[str, Any], values: Sequence[Any]) -> None:
        domain = Parameter.model_validate(parameter)
        seen = {str(value) for value in values if value is not None}
        self.options = {str(option): value_text(option) for option in domain.options if str(option) in seen}
        self.norm = (LogNorm if domain.kind == "loguniform" else Normalize)(*domain.bounds)

    def height(self, value: Any) -> float:
        """0..1; NaN for a value that is not there."""
        if value is None:
            return math.nan
        if not self.options:
            return float(self.norm(value))
        return list(self.options).index(str(value)) / max(1, len(self.options) - 1)

    def ticks(self) -> list[tuple[float, str]]:
        """(height, text) of all options, or of the ends and the middle."""
        if self.options:
            return [(self.height(option), text) for option, text in self.options.items()]
        return [(h, f"{float(self.norm.inverse(h)):.3g}") for h in (0.0, 0.5, 1.0)]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _shown(value: float | None, metric: str) -> float:
    """A metric's value as the axes show it: shares in percent, NaN for none."""
    if value is None:
        return math.nan
    return 100 * float(value) if metric in SHARES else float(value)


def _short(text: str, length: int = 22) -> str:
    """An option's label; of a long one both ends, since names of networks differ in the second."""
    head = length // 3
    return text if len(text) <= length else f"{text[:head]}...{text[head + 3 - length :]}"


def _folded(name: str) -> str:
    """A parameter's name on two lines where it is long."""
    head, dot, tail = name.rpartition(".")
    return f"{head}{dot}\n{tail}" if dot and len(name) > 12 else name
