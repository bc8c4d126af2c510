"""A sweep's report: one page with its figures, PNGs beside it, and TensorBoard's HParams."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cirkd_ray.report import sweep_figures as figures
from cirkd_ray.report.page import Page
from cirkd_ray.report.sweep import fair_comparison, ranking, short_names, summary, varied
from cirkd_ray.report.sweep_study import importance
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.sweep.folder import SweepData


def write_sweep(data: SweepData) -> Path:
    """Write `report/` and `tensorboard/` into the sweep's folder; returns the page."""
    page = Page(data.folder / "report", f"Sweep {data.space['name']}", data.space["description"])
    page.note(summary(data))
    if data.controls or data.finalists:
        page.table(fair_comparison(data))
    best = data.folder / "best.yaml"
    if best.is_file():
        page.heading("Recipe of the best trial")
        page.note(f"cirkd train {best}")
        page.code(best.read_text(encoding="utf-8"), "best.yaml")
    page.heading("Ranking")
    page.table(ranking(data))
    page.heading("Learning curves")
    page.figure("learning_curves", figures.learning_curves(data), curves_caption(data))
    shares, how = importance(data)
    page.heading("What matters")
    if shares:
        page.figure("importance", figures.importance_figure(shares), how)
    else:
        page.note(how)
    if data.ranked:
        whole = all(trial.status == "finished" for trial in data.ranked)
        rings = "" if whole else "Full dots ran to their end, rings did not."
        page.figure("slices", figures.slices(data), rings)
        page.heading("Parallel coordinates")
        page.figure("parallel_coordinates", figures.parallel_coordinates(data), "The best trial is red.")
    if len(data.space["metric"]) > 1:
        page.heading("Pareto front")
        front = "Red: no other finished trial is better in every metric."
        page.figure("pareto", figures.pareto_figure(data), front)
    write_hparams(data)
    return page.write()


def curves_caption(data: SweepData) -> str:
    """What the colours and marks of the learning curves mean, of those that are there."""
    drawn = [trial for trial in data.trials if trial.rows]
    status = {trial.status for trial in drawn}
    marks = {
        "red: the best": bool(data.ranked),
        "grey with a cross: stopped early": "stopped" in status,
        "grey with a cross: cut off by budget.hours": "expired" in status,
        "orange with a cross: failed": "failed" in status,
        "square: took over another trial's weights": any(trial.parents for trial in drawn),
    }
    return "; ".join(text for text, there in marks.items() if there).capitalize()


def write_hparams(data: SweepData) -> Path:
    """All trials' values, metrics and curves for TensorBoard's HPARAMS page; written anew."""
    folder = data.folder / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    names = short_names(varied(data))
    metrics = [*data.space["metric"], *(["miou"] if "miou" not in data.space["metric"] else [])]
    for trial in data.trials:
        if not trial.rows:
            continue
        board = TensorBoard(folder / trial.id)
        for row in trial.rows:
            shown = {f"val/{name}": float(row[name]) for name in metrics if name in row}
            board.scalars(int(row["step"]), shown)
        values: dict[str, Any] = {names[path]: trial.values.get(path, "-") for path in names}
        final = {f"hparam/{name}": trial.figure(name) for name in metrics}
        board.hparams(values, {**final, "hparam/steps": float(trial.step)})
        board.close()
    return folder
