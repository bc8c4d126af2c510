"""What Optuna finds in a sweep's trials: how much each parameter matters, and the Pareto front."""

from __future__ import annotations

import math
import warnings
from typing import Any

from cirkd_ray.sweep.folder import SweepData, Trial
from cirkd_ray.sweep.parameters import Parameter

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


def pareto_front(data: SweepData) -> list[Trial]:
    """Finished trials that no other finished one beats in every metric, in the order of the ranking."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    modes = data.space["metric"]
    figures = {t.id: [t.figure(name) for name in modes] for t in data.ranked if t.status == "finished"}
    known = {name: values for name, values in figures.items() if not any(map(math.isnan, values))}
    study = optuna.create_study(directions=[f"{mode}imize" for mode in modes.values()])
    study.add_trials([optuna.create_trial(values=values) for values in known.values()])
    front = {list(known)[best.number] for best in study.best_trials}
    return [trial for trial in data.ranked if trial.id in front]


def _fanova(data: SweepData, trials: list[Trial], paths: list[str]) -> dict[str, float]:
    import optuna

    varied = [path for path in paths if len({str(trial.values[path]) for trial in trials}) > 1]
    if not varied or len({trial.figure(data.metric) for trial in trials}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=f"{data.space['metric'][data.metric]}imize")
    domains = {path: _distribution(data.space["parameters"][path], path, trials) for path in varied}
    for trial in trials:
        values = {path: trial.values[path] for path in varied}
        figure = trial.figure(data.metric)
        study.add_trial(optuna.create_trial(params=values, distributions=domains, value=figure))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    return {path: float(share) for path, share in shares.items()}


def _distribution(parameter: dict[str, Any], path: str, trials: list[Trial]) -> Any:
    """Optuna's name for a parameter's domain; of options only those that were tried."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain = Parameter.model_validate(parameter)
    if domain.options:
        return CategoricalDistribution(sorted({trial.values[path] for trial in trials}, key=str))
    if domain.kind == "randint":
        return IntDistribution(*map(int, domain.bounds))
    return FloatDistribution(*domain.bounds, log=domain.kind == "loguniform")
