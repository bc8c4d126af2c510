"""A sweep's report: one page with its figures, PNGs beside it, and TensorBoard's HParams."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cirkd_ray.report import sweep_figures as figures
from cirkd_ray.report.html import Page
from cirkd_ray.report.sweep import fair_comparison, ranking, short_names, summary, varied
from cirkd_ray.report.sweep_importance import importance
from cirkd_ray.report.tensorboard import TensorBoard
from cirkd_ray.sweep.folder import SweepData


def write_sweep(data: SweepData) -> Path:
    """Write `report/` and `tensorboard/` into the sweep's folder; returns the page."""
    space = data.space
    page = Page(data.folder / "report", f"Sweep {space['name']}", space["description"])
    page.note(summary(data))
    if data.controls or data.finalists:
        page.table(fair_comparison(data))
    best = data.folder / "best.yaml"
    if best.is_file():
        page.heading("Best recipe")
        page.note(f"cirkd train {best}")
        page.code(best.read_text(encoding="utf-8"), "best.yaml")
    page.heading("Ranking")
    page.table(ranking(data))
    page.heading("Learning curves")
    page.figure("learning_curves", figures.learning_curves(data), _CURVES)
    shares, how = importance(data)
    page.heading("What matters")
    if shares:
        page.figure("importance", figures.importance_figure(shares), how)
    else:
        page.note(how)
    if data.ranked:
        page.figure("slices", figures.slices(data), "Full dots ran to their end, rings were stopped early.")
        page.heading("Parallel coordinates")
        page.figure("parallel_coordinates", figures.parallel_coordinates(data), "The best trial is red.")
    if len(space["metric"]) > 1:
        page.heading("Pareto front")
        page.figure(
            "pareto", figures.pareto_figure(data), "Red: no other finished trial is better in every metric."
        )
    write_hparams(data)
    return page.write()


_CURVES = (
    "Red: the best; grey with a cross: stopped; orange with a cross: failed; "
    "square: took over another trial's weights."
)


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
            board.scalars(
                int(row["step"]), {f"val/{name}": float(row[name]) for name in metrics if name in row}
            )
        values: dict[str, Any] = {names[path]: trial.values.get(path, "-") for path in names}
        final = {f"hparam/{name}": trial.figure(name) for name in metrics}
        board.hparams(values, {**final, "hparam/steps": float(trial.step)})
        board.close()
    return folder
