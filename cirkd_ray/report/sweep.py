"""A sweep's tables: ranking, controls and finalists, budget."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from typing import Any

from cirkd_ray.report.tables import UNKNOWN, Sheet, percent
from cirkd_ray.sweep.folder import SweepData

SHARES = ("miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou")
"""Metrics in 0..1, shown in percent."""


def ranking(data: SweepData, limit: int | None = None) -> Sheet:
    """Trials, best first: their values, metrics, how far they came; failed ones last."""
    paths = varied(data)
    metrics = list(data.space["metric"])
    ranked = data.ranked
    others = [trial for trial in data.trials if trial not in ranked]
    shown = [*ranked, *others][:limit]
    short = short_names(paths)
    columns = ("trial", *(figure_name(m) for m in metrics), "step", "status", *(short[p] for p in paths))
    rows = [
        (
            trial.id,
            *(figure(trial.figure(metric), metric) for metric in metrics),
            f"{trial.step}/{trial.steps}",
            trial.status,
            *(value_text(trial.values.get(path)) for path in paths),
        )
        for trial in shown
    ]
    return Sheet(columns, tuple(rows), "Trials, those that ran longest first, then by the last validation")


def fair_comparison(data: SweepData) -> Sheet:
    """Controls and finalists over the seeds that nothing was chosen by.

    A finalist was chosen by its figure with the first seed, which therefore flatters it. Where it has been
    run with other seeds, the first is left out, for all alike.
    """
    metric, first, others = data.metric, data.space["seeds"][0], set(data.space["seeds"][1:])
    chosen = not any(others & set(runs) for runs in data.finalists.values())
    seeds = {first} if chosen else others
    rows = []
    groups: dict[str, list[float]] = {}
    for trial in data.ranked[: max(1, data.space["finalists"])]:
        own = [trial.figure(metric)] if trial.status == "finished" else []
        runs = data.finalists.get(trial.id, {})
        groups[f"trial {trial.id}"] = own if chosen else _last(runs, metric, seeds)
    for name, runs in sorted(data.controls.items()):
        groups[CONTROLS.get(name, name)] = _last(runs, metric, seeds)
    for name, values in groups.items():
        mean = statistics.mean(values) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        lowest = figure(min(values), metric) if values else UNKNOWN
        cells = (figure(mean, metric), figure(spread, metric), lowest, str(len(values)))
        rows.append((name, *cells))
    how = (
        "the best was chosen by this very figure, which flatters it (more seeds and finalists would tell)"
        if chosen
        else f"without seed {first}, by which the best was chosen"
    )
    title = f"The best and the controls, last validation; {how}"
    return Sheet(("", figure_name(metric), "standard deviation", "lowest", "seeds"), tuple(rows), title)


SHOWN = 4
"""Trials that are named where many failed of one reason."""
LEFT_OUT = {
    "stopped": "saved by early stopping",
    "expired": "cut off by budget.hours",
    "failed": "not trained by failed trials",
    "running": "still to train",
}
"""Of the planned steps, by the status of the trials that did not train them."""
CONTROLS = {"baseline": "control: no distillation", "defaults": "control: the recipe's own values"}


def summary(data: SweepData) -> str:
    """A few lines: how trials ended, and what early stopping saved."""
    counts: dict[str, int] = {}
    for trial in data.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    spent, planned = data.steps_spent, data.steps_planned
    shares = {status: 100.0 * data.steps_left_out(status) / max(1, planned) for status in LEFT_OUT}
    parts = [f"{shares[s]:.0f} % {words}" for s, words in LEFT_OUT.items() if s == "stopped" or shares[s]]
    lines = [
        f"trials       {len(data.trials)}: {ended}",
        f"budget       {spent} of {planned} training steps ({', '.join(parts)})",
    ]
    for name, runs in sorted(data.controls.items()):
        values = ", ".join(figure(value, data.metric) for value in _last(runs, data.metric))
        lines.append(f"{CONTROLS.get(name, name)}: {figure_name(data.metric)} {values}")
    reasons: dict[str, list[str]] = {}
    for trial in data.trials:
        if trial.status == "failed" and trial.reason:
            reasons.setdefault(trial.reason.splitlines()[0], []).append(trial.id)
    for reason, ids in reasons.items():
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        noun = "trial" if len(ids) == 1 else "trials"
        lines.append(f"{noun} {', '.join(ids[:SHOWN])}{more} failed: {reason}")
    lines += [f"{name} failed: {reason.splitlines()[0]}" for name, reason in sorted(data.failures.items())]
    return "\n".join(lines)


def _last(runs: dict[int, dict[str, Any]], metric: str, seeds: Collection[int] | None = None) -> list[float]:
    """The last validation's figure of each run, of these seeds where they are given."""
    return [
        float(result["last"][metric])
        for seed, result in sorted(runs.items())
        if metric in result["last"] and (seeds is None or seed in seeds)
    ]


def varied(data: SweepData) -> list[str]:
    """The paths that the sweep varies."""
    return list(data.space["parameters"])


def short_names(paths: list[str]) -> dict[str, str]:
    """Path -> as many of its last parts as tell it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            tail = ".".join(parts[-count:])
            if sum(other == tail or other.endswith(f".{tail}") for other in paths) == 1:
                break
        found[path] = tail
    return found


def figure_name(metric: str) -> str:
    """For a table's head."""
    names = {"miou": "mIoU %", "latency_ms": "latency ms"}
    return names.get(metric, f"{metric} %" if metric in SHARES else metric)


def figure(value: float | None, metric: str) -> str:
    """A metric's value as text."""
    if value is None or value != value:
        return UNKNOWN
    return percent(value) if metric in SHARES else f"{value:.4g}"


def value_text(value: Any) -> str:
    """A sampled value as text."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
