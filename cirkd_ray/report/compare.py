"""A comparison's table (terminal, Markdown, CSV) and plot."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from cirkd_ray.compare.folder import BASELINE, CompareData
from cirkd_ray.compare.statistics import Interval
from cirkd_ray.report.tables import UNKNOWN, Sheet, percent, rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = 0.05


def methods_table(data: CompareData) -> Sheet:
    """A row a method: mIoU with interval, difference to the baseline with its test, gap closed, cost."""
    columns = (
        "method",
        "seeds",
        "mIoU % (last)",
        "95 % interval",
        "best",
        "difference",
        "p (Holm)",
        "gap closed %",
        "images/s",
        "minutes",
        "GPU GiB",
    )
    rows = []
    for name in data.recipes:
        last, best = data.interval(name), data.interval(name, "best")
        paired = data.paired.get(name)
        rows.append(
            (
                name,
                str(len(data.results[name])),
                percent(last.mean),
                _bounds(last),
                percent(best.mean),
                _signed(paired.difference.mean) if paired else "",
                _p(paired.p_holm) if paired else "",
                percent(data.gap_closed(name)) if paired else "",
                rate(data.mean_of(name, "images_per_second")),
                rate(data.mean_of(name, "seconds") / 60),
                rate(max(data.memory[name].values())) if data.memory[name] else UNKNOWN,
            )
        )
    return Sheet(columns, tuple(rows))


def notes(data: CompareData) -> str:
    """How to read the table, and what is missing."""
    teachers = sorted({f"{percent(score)} %" for score in data.teachers.values()})
    lines = [
        "Mean over seeds of the last validation's mIoU, with Student's 95 % interval; the best validation "
        "beside it is chosen on the same images and therefore flattering.",
        "Difference: mean over common seeds of (method - baseline), in points; p: paired t-test, two-sided, "
        "after Holm's correction over all methods. Runs of a seed share data order and first weights.",
    ]
    if teachers:
        lines.append(
            f"Gap closed: (method - baseline) / (teacher - baseline); teacher's best: {', '.join(teachers)}."
        )
    if any(len(seeds) < 2 for seeds in data.results.values()):
        lines.append("With fewer than two seeds there is no interval and no test.")
    lines += [f"Failed: {name}: {reason.splitlines()[0]}" for name, reason in data.failures.items()]
    return "\n".join(lines)


def markdown(data: CompareData) -> str:
    """Table and notes."""
    return methods_table(data).markdown() + "\n" + notes(data).replace("\n", "\n\n") + "\n"


def csv_text(data: CompareData) -> str:
    """A line a run, with the raw figures."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou")
    columns = [*(f"last_{n}" for n in names), *(f"best_{n}" for n in names)]
    writer.writerow(["method", "seed", "steps", *columns, "seconds", "images_per_second", "gpu_memory_gib"])
    for method, runs in data.results.items():
        for seed, result in sorted(runs.items()):
            figures = [result[kind].get(name, "") for kind in ("last", "best") for name in names]
            cost = [
                result.get("seconds", ""),
                result.get("images_per_second", ""),
                data.memory[method].get(seed, ""),
            ]
            writer.writerow([method, seed, result.get("steps", ""), *figures, *cost])
    return file.getvalue()


def comparison_figure(data: CompareData) -> Figure:
    """Left: every run's last mIoU, means and intervals. Right: mean validation curves of finished runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 1.6 + 0.5 * max(4, len(data.recipes))), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
    names = list(data.recipes)
    for row, name in enumerate(reversed(names)):
        color = f"C{names.index(name)}"
        values = [100 * v for v in data.figures(name).values()]
        interval = data.interval(name)
        if not values:
            continue
        if not math.isnan(interval.low):
            left.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2)
        left.plot([100 * interval.mean], [row], "D", color=color, markersize=9)
        runs = [row] * len(values)  # rings on top: they lie on the interval, one may be the mean
        left.plot(values, runs, "o", markerfacecolor="white", markeredgecolor=color, markersize=5)
    teacher = sorted(set(data.teachers.values()))
    for score in teacher:
        left.axvline(100 * score, color="0.4", linestyle="--", linewidth=1, label="teacher (best)")
    left.set_yticks(range(len(names)), list(reversed(names)))
    left.set_ylim(-0.6, len(names) - 0.4)
    left.set_xlabel("mIoU % of the last validation: runs (rings), mean, 95 % interval")
    left.grid(axis="x", alpha=0.3)
    if teacher:
        left.legend(fontsize=8)
    for index, name in enumerate(names):
        whole = [rows for seed, rows in data.curves[name].items() if seed in data.results[name]]
        steps, means = _mean_curve(whole)
        label = name + (" *" if _significant(data, name) else "")
        right.plot(
            steps,
            means,
            marker="." if len(steps) < 10 else None,
            color=f"C{index}",
            label=label,
            linewidth=1.6,
        )
    right.set_xlabel("step")
    right.set_ylabel("mIoU %, mean over seeds")
    right.grid(alpha=0.3)
    starred = any(_significant(data, name) for name in names)
    title = f"* p < {ALPHA} against the baseline" if starred else None
    right.legend(fontsize=8, title=title, title_fontsize=7)
    return figure


def _significant(data: CompareData, name: str) -> bool:
    return name != BASELINE and name in data.paired and data.paired[name].p_holm < ALPHA


def _mean_curve(curves: list[list[dict[str, float]]]) -> tuple[list[int], list[float]]:
    """Means at the steps that all curves have."""
    common = set.intersection(*({int(row["step"]) for row in rows} for rows in curves)) if curves else set()
    steps = sorted(common)
    by_step = [{int(row["step"]): 100 * row["miou"] for row in rows} for rows in curves]
    return steps, [sum(curve[step] for curve in by_step) / len(by_step) for step in steps]


def _bounds(interval: Interval) -> str:
    if math.isnan(interval.low):
        return UNKNOWN
    return f"{percent(interval.low)} to {percent(interval.high)}"


def _signed(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{100 * value:+.2f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
