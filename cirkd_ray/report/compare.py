"""A comparison's table (terminal, Markdown, CSV) and plot."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from cirkd_ray.compare.folder import CompareData
from cirkd_ray.compare.statistics import LEAST_GAP
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.report.tables import UNKNOWN, TextTable, percent, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALPHA = 0.05


def methods_table(data: CompareData) -> TextTable:
    """A row a method: mIoU with interval, difference to the baseline with its test, gap closed, cost."""
    rows = [_method_row(data, name) for name in data.recipes]
    return TextTable(tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def _method_row(data: CompareData, name: str) -> dict[str, str]:
    last, paired, memory = data.interval(name), data.paired.get(name), data.memory[name].values()
    bounds = UNKNOWN if math.isnan(last.low) else f"{percent(last.low)} to {percent(last.high)}"
    return {
        "method": name,
        "seeds": str(len(data.results[name])),
        "mIoU % (last)": percent(last.mean),
        "95 % interval": bounds,
        "best": percent(data.interval(name, "best").mean),
        "difference": _signed(paired.difference.mean) if paired else "",
        "p (Holm)": _p(paired.p_holm) if paired else "",
        "gap closed %": percent(data.gap_closed(name)) if paired else "",
        "steps": " or ".join(str(count) for count in _steps(data, name)) or UNKNOWN,
        "images/s": rate(data.mean_of(name, "images_per_second")),
        "minutes": rate(data.mean_of(name, "seconds") / 60),
        "GPU GiB": rate(max(memory, default=None)),
    }


def _steps(data: CompareData, name: str) -> list[int]:
    """What the finished runs of a method trained; of all seeds the same, unless a recipe was changed."""
    return sorted({int(result["steps"]) for result in data.results[name].values() if "steps" in result})


def _budget(data: CompareData) -> str:
    """What was equal between the methods."""
    if not data.timing:
        return "Equal steps: what the methods cost differs, see minutes."
    seconds = ", ".join(f"{name} {share.seconds:.3f}" for name, share in data.timing.items())
    return (
        "Equal time: each method trains as many steps as take as long as the baseline's, by seconds a step "
        f"that were measured beside each other at the start: {seconds}. Minutes are those of the runs."
    )


def notes(data: CompareData) -> str:
    """How to read the table, and what is missing."""
    teachers = sorted({f"{percent(score)} %" for score in data.teachers.values()})
    lines = [
        _budget(data),
        "Mean over seeds of the last validation's mIoU, with Student's 95 % interval; the best validation "
        "beside it is chosen on the same images and therefore flattering.",
        "Difference: mean over common seeds of (method - baseline), in points; p: paired t-test, two-sided, "
        "after Holm's correction over all methods. Runs of a seed share data order and first weights.",
    ]
    spans = {over_classes(result["last"]) for runs in data.results.values() for result in runs.values()} - {
        ""
    }
    if spans:
        lines.append(f"Each mIoU is a mean over {' or '.join(sorted(spans))}.")
    if teachers:
        lines.append(
            "Gap closed: (method - baseline) / (teacher - baseline), where the teacher leads by "
            f"{100 * LEAST_GAP:g} points or more; the teacher has {', '.join(teachers)}."
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
    kept = [(kind, name) for kind in ("last", "best") for name in names]
    columns = (f"{kind}_{name}" for kind, name in kept)
    writer.writerow(["method", "seed", "steps", *columns, "seconds", "images_per_second", "gpu_memory_gib"])
    for method, runs in data.results.items():
        for seed, result in sorted(runs.items()):
            figures = [result[kind].get(name, "") for kind, name in kept]
            cost = [result.get(name, "") for name in ("seconds", "images_per_second")]
            memory = data.memory[method].get(seed, "")
            writer.writerow([method, seed, result.get("steps", ""), *figures, *cost, memory])
    return file.getvalue()


def comparison_figure(data: CompareData) -> Figure:
    """Left: every run's last mIoU, means and intervals. Right: mean validation curves of finished runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 1.6 + 0.5 * max(4, len(data.recipes))), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
    _draw_intervals(left, data)
    _draw_curves(right, data)
    return figure


def _draw_intervals(axes: Axes, data: CompareData) -> None:
    names = list(data.recipes)
    for row, name in enumerate(names):
        color, interval = f"C{row}", data.interval(name)
        values = [100 * value for value in data.figures(name).values()]
        axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2)
        axes.plot([100 * interval.mean], [row], "D", color=color, markersize=9)
        # Rings on top: they lie on the interval, one may be the mean.
        axes.plot(values, [row] * len(values), "o", color=color, markerfacecolor="white", markersize=5)
    for score in sorted(set(data.teachers.values())):
        axes.axvline(100 * score, color="0.4", linestyle="--", linewidth=1, label="teacher")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set_xlabel("mIoU % of the last validation: runs (rings), mean, 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    if data.teachers:
        axes.legend(fontsize=8)


def _draw_curves(axes: Axes, data: CompareData) -> None:
    notable = {name for name, paired in data.paired.items() if paired.p_holm < ALPHA}
    for index, name in enumerate(data.recipes):
        whole = [rows for seed, rows in data.curves[name].items() if seed in data.results[name]]
        steps, means = _mean_curve(whole)
        label, marker = f"{name} *" if name in notable else name, "." if len(steps) < 10 else None
        axes.plot(steps, means, marker=marker, color=f"C{index}", label=label, linewidth=1.6)
    axes.set(xlabel="step", ylabel="mIoU %, mean over seeds")
    axes.grid(alpha=0.3)
    title = f"* p < {ALPHA} against the baseline" if notable else None
    axes.legend(fontsize=8, title=title, title_fontsize=7)


def _mean_curve(curves: list[list[dict[str, float]]]) -> tuple[list[int], list[float]]:
    """Means at the steps that all curves have."""
    common = set.intersection(*({int(row["step"]) for row in rows} for rows in curves)) if curves else set()
    steps = sorted(common)
    by_step = [{int(row["step"]): 100 * row["miou"] for row in rows} for rows in curves]
    return steps, [sum(curve[step] for curve in by_step) / len(by_step) for step in steps]


def _signed(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{100 * value:+.2f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
