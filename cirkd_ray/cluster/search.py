"""Ray Tune's searchers and schedulers for a SweepSpec."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, Searcher

from cirkd_ray.cluster.bridge import TIME
from cirkd_ray.sweep.parameters import Parameter
from cirkd_ray.sweep.space import SweepSpec


class FixedPoints(Searcher):  # type: ignore[misc]
    """Configurations that are known from the start: a grid, or random ones as a function of the seed."""

    def __init__(self, points: Sequence[dict[str, Any]]) -> None:
        super().__init__(metric=None, mode=None)
        self.points = list(points)
        self.given: dict[str, int] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Nothing to take over."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next one."""
        index = self.given.setdefault(trial_id, len(self.given))
        return dict(self.points[index]) if index < len(self.points) else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learnt."""

    def save(self, checkpoint_path: str) -> None:
        """For resuming."""
        state = {"points": self.points, "given": self.given}
        Path(checkpoint_path).write_text(json.dumps(state, default=lambda value: value.item()))

    def restore(self, checkpoint_path: str) -> None:
        """Go on after the last one given."""
        state = json.loads(Path(checkpoint_path).read_text())
        self.points, self.given = state["points"], state["given"]


class DefineByRun:
    """A space as Optuna's define-by-run function: a parameter is asked for only where its condition holds."""

    def __init__(self, sweep: SweepSpec) -> None:
        self.sweep = sweep

    def __call__(self, trial: Any) -> dict[str, Any]:
        """Suggest in the order of the file."""
        values: dict[str, Any] = {}
        for path, parameter in self.sweep.parameters.items():
            if parameter.applies(values):
                values[path] = parameter.suggest(trial, path)
        return values


def make_searcher(sweep: SweepSpec) -> Searcher | BasicVariantGenerator:
    """The searcher of a space."""
    if sweep.searcher.name == "grid":
        return FixedPoints(_grid(sweep))
    if sweep.searcher.name == "tpe":
        return _tpe(sweep)
    points = sweep.random_points(sweep.trials)
    if sweep.scheduler.name == "pbt":  # takes no other searcher
        return BasicVariantGenerator(points_to_evaluate=points)
    return FixedPoints(points)


def _grid(sweep: SweepSpec) -> list[dict[str, Any]]:
    """The grid's points; in random order where bad trials are stopped early.

    A grid in its own order is the worst case of asynchronous halving: where results rise along an axis,
    every trial is the best so far when it is judged, and none is stopped.
    """
    points = sweep.grid_points()
    if sweep.scheduler.name != "none":
        np.random.default_rng(sweep.searcher.seed).shuffle(points)
    return points[: sweep.trials]


def _tpe(sweep: SweepSpec) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=sweep.searcher.seed, n_startup_trials=sweep.searcher.startup_trials, constant_liar=True
    )
    names, modes = list(sweep.metric), list(sweep.metric.values())
    several = sweep.multi_objective
    return OptunaSearch(
        DefineByRun(sweep),
        metric=names if several else names[0],
        mode=modes if several else modes[0],
        sampler=sampler,
    )


def make_scheduler(sweep: SweepSpec, steps: int, report_every: int) -> TrialScheduler:
    """The scheduler of a space whose longest trial has `steps`, with a report every `report_every`."""
    scheduler = sweep.scheduler
    reports = -(-steps // report_every)
    grace = (scheduler.grace_steps or report_every) // report_every
    interval = (scheduler.perturb_every or report_every) // report_every
    if scheduler.name == "asha":
        # One more than there are: a trial that reaches the end ends by itself.
        return ASHAScheduler(
            time_attr=TIME, max_t=reports + 1, grace_period=grace, reduction_factor=scheduler.reduction_factor
        )
    if scheduler.name == "hyperband":
        return HyperBandScheduler(time_attr=TIME, max_t=reports, reduction_factor=scheduler.reduction_factor)
    if scheduler.name == "median":
        return MedianStoppingRule(time_attr=TIME, grace_period=grace, min_samples_required=3)
    if scheduler.name == "pbt":
        return PopulationBasedTraining(
            time_attr=TIME,
            perturbation_interval=interval,
            hyperparam_mutations={path: mutation(p) for path, p in sweep.parameters.items()},
            quantile_fraction=scheduler.quantile,
            resample_probability=scheduler.resample,
            custom_explore_fn=sweep.tidy,
        )
    return FIFOScheduler()


def population_space(sweep: SweepSpec) -> dict[str, Any]:
    """What PBT wants to be told of a space, besides its first points; empty for the others."""
    if sweep.scheduler.name != "pbt":
        return {}
    found = {path: mutation(parameter) for path, parameter in sweep.parameters.items()}
    return {path: tune.choice(d) if isinstance(d, list) else d for path, d in found.items()}


def mutation(parameter: Parameter) -> Any:
    """What PBT draws from; it scales numbers without regard to bounds, which `SweepSpec.tidy` puts right."""
    if parameter.options:
        return list(parameter.options)
    low, high = parameter.bounds
    if parameter.loguniform:
        return tune.loguniform(low, high)
    if parameter.randint:
        return tune.randint(int(low), int(high) + 1)
    return tune.uniform(low, high)
