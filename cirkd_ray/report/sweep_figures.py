"""A sweep's figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from cirkd_ray.report.sweep import CONTROLS, SHARES, figure_name, short_names, value_text, varied
from cirkd_ray.sweep.folder import SweepData, Trial
from cirkd_ray.sweep.parameters import Parameter

_MAP = colormaps["viridis"]
_COLORS = {"stopped": "0.65", "expired": "0.65", "failed": "C1"}
"""Of trials that did not come to their end."""


def learning_curves(data: SweepData) -> Figure:
    """The metric over every trial's steps; crosses where stopped, squares where weights were taken over."""
    figure = Figure(figsize=(9.5, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    best = data.ranked[0] if data.ranked else None
    for trial in data.trials:
        points = [(row["step"], _shown(row.get(data.metric), data.metric)) for row in trial.rows]
        if not points:
            continue
        is_best = trial is best
        color = "C3" if is_best else _COLORS.get(trial.status, "C0")
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            color=color,
            linewidth=2.2 if is_best else 1.0,
            alpha=1 if is_best else 0.7,
            zorder=3 if is_best else 2,
            label=f"best: {trial.id}" if is_best else None,
        )
        if trial.status in _COLORS:
            axes.plot(steps[-1], values[-1], "x", color=color, markersize=6)
        for step, _ in trial.parents:
            at = min(range(len(steps)), key=lambda i: abs(steps[i] - step))
            axes.plot(steps[at], values[at], "s", color=color, markersize=4)
    for name, runs in sorted(data.controls.items()):
        ends = [_shown(result["last"].get(data.metric), data.metric) for result in runs.values()]
        if ends:
            style = {"baseline": ":", "defaults": "--"}.get(name, "-.")
            label = CONTROLS.get(name, f"control: {name}")
            axes.axhline(float(np.mean(ends)), color="k", linestyle=style, linewidth=1, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(figure_name(data.metric))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """Bars, largest on top."""
    figure = Figure(figsize=(8.0, 0.9 + 0.36 * len(shares)), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = short_names(list(shares))
    for row, (path, share) in enumerate(reversed(list(shares.items()))):
        axes.barh(row, share, color="C0")
        axes.text(share, row, f" {share:.2f}", va="center", fontsize=8)
        axes.text(0, row, "", va="center")
        del path
    axes.set_yticks(range(len(shares)), [names[path] for path in reversed(list(shares))])
    axes.set_xlim(0, max([*shares.values(), 0.1]) * 1.12)
    axes.set_xlabel("share of the metric's variance")
    return figure


def parallel_coordinates(data: SweepData) -> Figure:
    """A line a trial through its values, coloured by the metric; the best is drawn thick."""
    paths, names = varied(data), short_names(varied(data))
    figure = Figure(figsize=(max(7.0, 1.5 * (len(paths) + 1)), 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    trials = list(reversed(data.ranked))
    scores = [trial.figure(data.metric) for trial in trials]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    scales = [Scale(data.space["parameters"][path], [t.values.get(path) for t in trials]) for path in paths]
    for trial, score in zip(trials, scores, strict=True):
        heights = [scale.height(trial.values.get(path)) for scale, path in zip(scales, paths, strict=True)]
        known = [(column, h) for column, h in enumerate(heights) if not math.isnan(h)]
        share = (score - low) / (high - low) if high > low else 0.5
        is_best = trial is trials[-1]
        color = "C3" if is_best else _MAP(0.9 * (share if data.sign > 0 else 1 - share))  # no pale yellow
        axes.plot(
            *zip(*known, (len(paths), share), strict=True),  # on over settings that do not count for it
            color=color,
            linewidth=2.5 if is_best else 1.0,
            alpha=1.0 if is_best else 0.75,
            marker="o",
            markersize=3,
        )
    ends = [(h, value_text(_shown(value, data.metric))) for h, value in ((0.0, low), (1.0, high))]
    for column, ticks in enumerate([*(scale.ticks() for scale in scales), ends]):
        for height, text in ticks:
            place: dict[str, Any] = {
                "xytext": (5, 0),
                "textcoords": "offset points",
                "va": "center",
                "zorder": 4,
            }
            axes.annotate(_short(text), (column, height), fontsize=7, bbox=_BOX, **place)
    labels = [_folded(name) for name in (*(names[p] for p in paths), figure_name(data.metric))]
    axes.set_xticks(range(len(paths) + 1), labels, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(paths) + 0.5)
    axes.grid(axis="x", alpha=0.4)
    return figure


_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}


def _short(text: str, length: int = 22) -> str:
    """An option's label; of a long one both ends, since names of networks differ in the second."""
    head = length // 3
    return text if len(text) <= length else f"{text[:head]}...{text[head + 3 - length :]}"


def _folded(name: str) -> str:
    """A parameter's name on two lines where it is long."""
    head, dot, tail = name.rpartition(".")
    return f"{head}{dot}\n{tail}" if dot and len(name) > 12 else name


class Scale:
    """Values of one parameter on 0..1: logarithmic, linear, or options in order."""

    def __init__(self, parameter: Mapping[str, Any], values: Sequence[Any]) -> None:
        options = Parameter.model_validate(parameter).options
        seen = {str(value) for value in values if value is not None}
        self.options = [str(option) for option in options if str(option) in seen]
        bounds = next(
            (parameter[k] for k in ("loguniform", "uniform", "quniform", "randint") if parameter.get(k)), None
        )
        self.log = parameter.get("loguniform") is not None
        self.low, self.high = (float(bounds[0]), float(bounds[1])) if bounds else (0.0, 1.0)

    def height(self, value: Any) -> float:
        """Position; NaN for a value that is not there."""
        if value is None:
            return math.nan
        if self.options:
            return self.options.index(str(value)) / max(1, len(self.options) - 1)
        if self.log:
            return math.log(float(value) / self.low) / math.log(self.high / self.low)
        return (float(value) - self.low) / (self.high - self.low)

    def text(self, option: str) -> str:
        """An option as the tables show it: a number without needless digits."""
        return value_text(float(option)) if re.fullmatch(r"-?\d+\.\d+", option) else option

    def ticks(self) -> list[tuple[float, str]]:
        """(position, text) of the ends or of all options."""
        if self.options:
            return [(self.height(option), self.text(option)) for option in self.options]
        return [(0.0, f"{self.low:.3g}"), (1.0, f"{self.high:.3g}")]


def slices(data: SweepData) -> Figure:
    """The metric over each parameter: full dots ran to their end, rings were stopped."""
    paths, names = varied(data), short_names(varied(data))
    columns = min(4, len(paths))
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.7 * rows + 0.3), dpi=110, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for axes, path in zip(grid, paths, strict=False):
        _slice(axes, data, path)
        axes.set_xlabel(names[path], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in grid[len(paths) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(figure_name(data.metric), fontsize=8)
    return figure


def _slice(axes: Axes, data: SweepData, path: str) -> None:
    trials = [trial for trial in data.ranked if trial.values.get(path) is not None]
    parameter = data.space["parameters"][path]
    scale = Scale(parameter, [trial.values[path] for trial in trials])
    for trial in trials:
        value = trial.values[path]
        x = scale.options.index(str(value)) if scale.options else float(value)
        face = "C0" if trial.status == "finished" else "none"
        y = _shown(trial.figure(data.metric), data.metric)
        axes.plot(x, y, "o", markersize=5, markerfacecolor=face, markeredgecolor="C0", alpha=0.8)
    if scale.options:
        labels = [_short(scale.text(option)) for option in scale.options]
        slanted: dict[str, Any] = {"rotation": 25, "ha": "right"} if sum(map(len, labels)) > 20 else {}
        axes.set_xticks(range(len(labels)), labels, **slanted)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    elif scale.log:
        ratio = (scale.high / scale.low) ** 0.04
        axes.set_xscale("log")
        axes.set_xlim(scale.low / ratio, scale.high * ratio)
        ends = (scale.low, math.sqrt(scale.low * scale.high), scale.high)
        axes.set_xticks(ends, [f"{end:.2g}" for end in ends])
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.04 * (scale.high - scale.low)
        axes.set_xlim(scale.low - room, scale.high + room)


def pareto_front(data: SweepData) -> list[Trial]:
    """Finished trials that no other beats in every metric."""
    modes = data.space["metric"]
    trials = [t for t in data.ranked if t.status == "finished"]

    def point(trial: Trial) -> list[float]:
        return [trial.figure(name) * (1 if mode == "max" else -1) for name, mode in modes.items()]

    points = {trial.id: point(trial) for trial in trials}

    def beaten(trial: Trial) -> bool:
        mine = points[trial.id]
        return any(
            all(o >= m for o, m in zip(other, mine, strict=True)) and other != mine
            for other in points.values()
        )

    return [trial for trial in trials if not beaten(trial)]


def pareto_figure(data: SweepData) -> Figure:
    """Second metric against the first; the front is joined."""
    first, second = list(data.space["metric"])[:2]
    figure = Figure(figsize=(7.0, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    front = sorted(pareto_front(data), key=lambda trial: trial.figure(second))
    for trial in data.ranked:
        on = trial in front
        axes.plot(
            trial.figure(second),
            _shown(trial.figure(first), first),
            "o",
            color="C3" if on else "0.6",
            zorder=3,
        )
    axes.plot([t.figure(second) for t in front], [_shown(t.figure(first), first) for t in front], color="C3")
    costs = [trial.figure(second) for trial in data.ranked]
    for trial in front:
        text = ", ".join(value_text(v) for v in trial.values.values())
        x, y = trial.figure(second), _shown(trial.figure(first), first)
        left = x > (min(costs) + max(costs)) / 2  # towards the middle, where there is room for it
        place: dict[str, Any] = {"xytext": (-6 if left else 6, -10), "ha": "right" if left else "left"}
        axes.annotate(text, (x, y), textcoords="offset points", fontsize=7, bbox=_BOX, zorder=4, **place)
    axes.set_xlabel(figure_name(second))
    axes.set_ylabel(figure_name(first))
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    return figure


def _shown(value: float | None, metric: str) -> float:
    if value is None:
        return math.nan
    return 100 * float(value) if metric in SHARES else float(value)
