"""A sweep's tables: ranking, controls and finalists, budget."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.report.tables import UNKNOWN, TextTable, percent
from cirkd_ray.sweep.folder import SweepData

SHARES = ("miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou")
"""Metrics in 0..1, shown in percent."""
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


def ranking(data: SweepData, limit: int | None = None) -> TextTable:
    """Trials, best first: their values, metrics, how far they came; failed ones last."""
    metrics, names = list(data.space["metric"]), short_names(varied(data))
    columns = ("trial", *map(figure_name, metrics), "step", "status", *names.values())
    others = [trial for trial in data.trials if trial not in data.ranked]
    rows = [
        (
            trial.id,
            *(figure(trial.figure(metric), metric) for metric in metrics),
            f"{trial.step}/{trial.steps}",
            trial.status,
            *(value_text(trial.values.get(path)) for path in names),
        )
        for trial in [*data.ranked, *others][:limit]
    ]
    title = "Trials, those that ran longest first, then by the last validation"
    title += _spans("; mIoU over ", (trial.rows[-1] for trial in data.trials if trial.rows))
    return TextTable(columns, tuple(rows), title)


def fair_comparison(data: SweepData) -> TextTable:
    """Controls and finalists over the seeds that nothing was chosen by.

    A finalist was chosen by its figure with the first seed, so this figure flatters it. Where finalists have
    been run with other seeds, the first seed is left out for all.
    """
    metric, first = data.metric, data.space["seeds"][0]
    trials, controls, chosen = fair_figures(data)
    rows = []
    named = {CONTROLS.get(name, name): values for name, values in controls.items()}
    for name, values in {**{f"trial {trial}": v for trial, v in trials.items()}, **named}.items():
        mean = statistics.mean(values) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        shown = (figure(value, metric) for value in (mean, spread, min(values, default=None)))
        rows.append((name, *shown, str(len(values))))
    how = (
        "the best was chosen by this very figure, which flatters it (more seeds and finalists would tell)"
        if chosen
        else f"without seed {first}, by which the best was chosen"
    )
    runs = [
        run["last"] for group in (data.controls, data.finalists) for r in group.values() for run in r.values()
    ]
    spans = _spans("; mIoU over ", runs) if metric == "miou" else ""
    title = f"The best and the controls, last validation{spans}; {how}"
    return TextTable(("", figure_name(metric), "standard deviation", "lowest", "seeds"), tuple(rows), title)


Groups = dict[str, list[float]]


def fair_figures(data: SweepData) -> tuple[Groups, Groups, bool]:
    """Figures of the finalists by trial and of the controls by name, over the seeds of `fair_comparison`.

    The last value says whether these are the first seed, by which the finalists were chosen.
    """
    metric, first, others = data.metric, data.space["seeds"][0], set(data.space["seeds"][1:])
    chosen = not any(others & set(runs) for runs in data.finalists.values())
    seeds = {first} if chosen else others
    trials: Groups = {}
    for trial in data.ranked[: max(1, data.space["finalists"])]:
        own = [trial.figure(metric)] if trial.status == "finished" else []
        trials[trial.id] = own if chosen else last_figures(data.finalists.get(trial.id, {}), metric, seeds)
    controls = {name: last_figures(runs, metric, seeds) for name, runs in sorted(data.controls.items())}
    return trials, controls, chosen


def not_better(data: SweepData) -> str:
    """Says so where no trial beat the recipe's own values; else empty."""
    if "defaults" not in data.controls:
        return ""
    trials, controls, _ = fair_figures(data)
    means = [data.sign * statistics.mean(values) for values in trials.values() if values]
    if not means or not controls["defaults"]:
        return ""
    best, own = data.sign * max(means), statistics.mean(controls["defaults"])
    if data.sign * best > data.sign * own:
        return ""
    figures = f"{figure(best, data.metric)} against {figure(own, data.metric)}"
    return f"no trial beat the recipe's own values ({figure_name(data.metric)} {figures})"


def summary(data: SweepData) -> str:
    """A few lines: how trials ended, what early stopping saved, controls and failures."""
    counts = sorted(Counter(trial.status for trial in data.trials).items())
    planned = max(1, data.steps_planned)
    shares = {status: 100.0 * data.steps_left_out(status) / planned for status in LEFT_OUT}
    parts = [f"{shares[s]:.0f} % {words}" for s, words in LEFT_OUT.items() if s == "stopped" or shares[s]]
    lines = [
        f"trials       {len(data.trials)}: {', '.join(f'{count} {status}' for status, count in counts)}",
        f"budget       {data.steps_spent} of {data.steps_planned} training steps ({', '.join(parts)})",
    ]
    for name, runs in sorted(data.controls.items()):
        values = ", ".join(figure(value, data.metric) for value in last_figures(runs, data.metric))
        spans = _spans(" over ", (run["last"] for run in runs.values())) if data.metric == "miou" else ""
        lines.append(f"{CONTROLS.get(name, name)}: {figure_name(data.metric)} {values or UNKNOWN}{spans}")
    lines += [verdict] if (verdict := not_better(data)) else []
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


def _spans(before: str, scores: Iterable[Mapping[str, Any]]) -> str:
    """Over how many classes these means are, after `before`; empty if unknown."""
    spans = sorted({over_classes(row) for row in scores} - {""})
    return before + " or ".join(spans) if spans else ""


def last_figures(
    runs: dict[int, dict[str, Any]], metric: str, seeds: Collection[int] | None = None
) -> list[float]:
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

    def tails(path: str) -> list[str]:
        parts = path.split(".")
        return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]

    shared = Counter(tail for path in paths for tail in tails(path))
    return {path: next((tail for tail in tails(path) if shared[tail] == 1), path) for path in paths}


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
