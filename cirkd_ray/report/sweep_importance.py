"""How much each parameter of a sweep mattered."""

from __future__ import annotations

import warnings
from typing import Any

from cirkd_ray.sweep.folder import SweepData, Trial

ENOUGH = 4
"""Trials below which no importance is stated."""
TRUSTED = 8
"""Trials for each parameter below which the shares are called a hint."""


def importance(data: SweepData) -> tuple[dict[str, float], str]:
    """Path -> share of the metric's variance that it explains, largest first, and how that was found.

    fANOVA (Hutter et al., ICML 2014) by Optuna over the trials that got as far as the median trial, so
    that early stopping is not taken for an effect. Parameters under a condition are judged among the trials
    that have them, and their share is scaled by how many those are. Empty where there are too few trials or
    all scored the same.
    """
    trials = comparable(data)
    if len(trials) < ENOUGH or len({trial.figure(data.metric) for trial in trials}) < 2:
        return {}, "too few comparable trials for importance"
    always = [path for path in data.space["parameters"] if all(path in trial.values for trial in trials)]
    found = _fanova(data, trials, always)
    for path in data.space["parameters"]:
        having = [trial for trial in trials if path in trial.values]
        if path not in always and len(having) >= ENOUGH:
            found[path] = _fanova(data, having, [*always, path]).get(path, 0.0) * len(having) / len(trials)
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
    hint = "; too few for more than a hint" if len(trials) < TRUSTED * len(ordered) else ""
    return ordered, f"fANOVA over {len(trials)} of {len(data.trials)} trials{hint}"


def comparable(data: SweepData) -> list[Trial]:
    """Trials that came at least as far as the median one, of the way that each had to go."""
    ways = {trial.id: trial.step / max(1, trial.steps) for trial in data.ranked}
    middle = sorted(ways.values())[len(ways) // 2] if ways else 0.0
    return [trial for trial in data.ranked if ways[trial.id] >= middle]


def _fanova(data: SweepData, trials: list[Trial], paths: list[str]) -> dict[str, float]:
    import optuna

    varied = [path for path in paths if len({str(trial.values[path]) for trial in trials}) > 1]
    if not varied or len({trial.figure(data.metric) for trial in trials}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {path: _distribution(data.space["parameters"][path], path, trials) for path in varied}
    study = optuna.create_study(direction="maximize" if data.sign > 0 else "minimize")
    for trial in trials:
        parameters = {path: trial.values[path] for path in varied}
        study.add_trial(
            optuna.create_trial(
                params=parameters, distributions=distributions, value=trial.figure(data.metric)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return {
            k: float(v)
            for k, v in optuna.importance.get_param_importances(
                study, evaluator=evaluator, normalize=False
            ).items()
        }


def _distribution(parameter: dict[str, Any], path: str, trials: list[Trial]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    options = parameter.get("choice") or parameter.get("grid")
    if options is not None:
        return CategoricalDistribution(sorted({trial.values[path] for trial in trials}, key=str))
    if parameter.get("randint"):
        return IntDistribution(*parameter["randint"])
    bounds = parameter.get("loguniform") or parameter.get("uniform") or parameter["quniform"]
    return FloatDistribution(float(bounds[0]), float(bounds[1]), log=parameter.get("loguniform") is not None)
