"""A search space against its recipe: everything that can be known to go wrong before a trial starts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.applied import applied, paths_of
from cirkd_ray.config.composition import Tree, apply_overrides, flatten
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.errors import ConfigError, UserError, nearest
from cirkd_ray.sweep.parameters import Parameter
from cirkd_ray.sweep.space import PAUSING, SweepSpec
from cirkd_ray.sweep.space_file import SpaceFile
from cirkd_ray.train.dry_run import DryRun

REPORTED = ("miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou")
MEASURED = ("latency_ms", "parameters")
"""Of the student alone, measured when a trial starts: milliseconds for one validation image, and a count."""
DRAWN = 32
"""Configurations that are tried as recipes before a sweep starts."""


def base_run(space: SpaceFile) -> RunSpec:
    """The resolved recipe of a trial before its own values, with the sweep's budget and cadence.

    Raises:
        ConfigError: the recipe or `set` is wrong.
    """
    sweep = space.spec
    tree = load_tree(sweep.recipe)
    plain = from_tree(tree)
    _check_paths(space, "set", sweep.set, tree, plain)
    try:
        spec = from_tree(apply_overrides(tree, sweep.overrides()))
    except ConfigError as error:
        raise space.error(("set",), str(error)) from None
    every = sweep.budget.report_every or max(1, spec.train.steps // 10)
    cadence = {"train.validate_every": every, "train.checkpoint_every": every, "train.pictures": 0}
    cadence["train.log_every"] = min(every, spec.train.log_every)
    base = from_tree(apply_overrides(spec.to_dict(), cadence))
    asked, found = (flatten(run.to_dict()) for run in (from_tree(apply_overrides(tree, sweep.set)), base))
    for path in sweep.set:
        said = [k for k in asked if f"{k}.".startswith(f"{path}.") and Role.COSMETIC not in role_of(k)]
        if any(asked[key] != found.get(key) for key in said):
            raise space.error(
                ("set", path), "is set by the sweep itself; say it with budget, resources or seeds"
            )
    return base


def check_space(space: SpaceFile, notes: list[str] | None = None) -> RunSpec:
    """Check a space without data; returns `base_run`.

    Args:
        space: the space.
        notes: takes what could not be checked.

    Raises:
        ConfigError: with the line of the setting and what to do.
    """
    spec = base_run(space)
    _check_metrics(space)
    _check_pair(space)
    _check_schedule(space, spec)
    _check_pack(space, spec)
    dry = DryRun(elsewhere=True)
    try:
        dry.check(spec)
    except UserError as error:
        raise space.error(("recipe",), f"cannot be built: {error}") from None
    _check_parameters(space, spec)
    _check_values(space, spec, dry)
    _check_drawn(space, spec)
    if notes is not None:
        notes += dry.notes
    return spec


def _check_paths(space: SpaceFile, key: str, values: Mapping[str, Any], tree: Tree, spec: RunSpec) -> None:
    """Paths of `set` mean something in the recipe, before or after they are applied."""
    try:
        after = from_tree(apply_overrides(tree, dict(values)))
    except ConfigError:
        return  # reported with the value by the caller
    known = {**paths_of(spec), **paths_of(after)}
    for path in values:
        if path not in known:
            raise space.error(
                (key, path), f"no such setting in recipe {space.spec.recipe!r}{nearest(path, known)}"
            )


def _check_metrics(space: SpaceFile) -> None:
    for name in space.spec.metric:
        if name not in (*REPORTED, *MEASURED):
            hint = nearest(name, (*REPORTED, *MEASURED))
            raise space.error(("metric", name), f"trials cannot be judged by it{hint}")
    if space.spec.primary in MEASURED:
        raise space.error(("metric",), f"{space.spec.primary} alone is known before training; put miou first")


def _check_pair(space: SpaceFile) -> None:
    """Scheduler, searcher and domains go together."""
    sweep = space.spec
    scheduler, searcher = sweep.scheduler.name, sweep.searcher.name
    grids = [path for path, parameter in sweep.parameters.items() if parameter.kind == "grid"]
    if searcher == "grid" and len(grids) < len(sweep.parameters):
        other = next(path for path in sweep.parameters if path not in grids)
        raise space.error(
            ("parameters", other), "searcher grid takes grids only; give a grid, or another searcher"
        )
    if grids and searcher != "grid":
        raise space.error(
            ("parameters", grids[0]), f"searcher {searcher} draws its values; make the grid a choice"
        )
    if scheduler == "pbt" and searcher != "random":
        raise space.error(
            ("scheduler", "name"),
            f"scheduler pbt changes values while trials train; use searcher random, not {searcher}",
        )
    if sweep.multi_objective and scheduler != "none":
        raise space.error(
            ("scheduler", "name"),
            f"scheduler {scheduler} judges trials by one metric, the space has {len(sweep.metric)}; use none",
        )
    if scheduler == "pbt":
        _check_population(space)


def _check_pack(space: SpaceFile, spec: RunSpec) -> None:
    """Trials can share what packs share."""
    if space.spec.resources.pack == 1:
        return
    if spec.distill is None:
        where = ("resources", "pack")
        raise space.error(where, f"recipe {space.spec.recipe!r} has no teacher to share; leave pack out")


def apart(sweep: SweepSpec) -> list[str]:
    """Parameters by whose values trials are packed apart: those of what members share."""
    return [path for path in sweep.parameters if Role.COHORT in role_of(path)]


def _check_population(space: SpaceFile) -> None:
    for path, parameter in space.spec.parameters.items():
        if Role.MUTABLE not in role_of(path) or parameter.when:
            raise space.error(
                ("parameters", path),
                "pbt changes settings of a network that trains on; possible are "
                "loss weights, temperatures, optim.lr and their like, without conditions",
            )
        if Role.WEIGHT in role_of(path) and 0 in [parameter.setting(value) for value in parameter.extremes()]:
            raise space.error(
                ("parameters", path, parameter.kind),
                "pbt cannot take 0: a term without weight is not built, so its "
                "checkpoints fit no other trial; take a small weight instead",
            )
    if space.spec.trials < 4:
        raise space.error(("budget", "trials"), "a population needs at least 4 trials")


def _check_schedule(space: SpaceFile, spec: RunSpec) -> None:
    steps, every = spec.train.steps, spec.train.validate_every
    scheduler = space.spec.scheduler
    if every > steps:
        raise space.error(("budget", "report_every"), f"{every} steps, but a trial has only {steps}")
    for name in ("grace_steps", "perturb_every"):
        value = getattr(scheduler, name)
        if value is None:
            continue
        if value > steps:
            raise space.error(("scheduler", name), f"{value} steps, but a trial has only {steps}")
        if value % every:
            raise space.error(
                ("scheduler", name), f"{value} is no multiple of the {every} steps between reports"
            )
    if scheduler.name in (*PAUSING, "asha", "median") and steps // every < 2:
        raise space.error(
            ("budget", "report_every"), f"{scheduler.name} needs two reports or more in {steps} steps"
        )


def _check_parameters(space: SpaceFile, spec: RunSpec) -> None:
    """Every path is one that a sweep may vary and exists, in every branch of its conditions."""
    base, paths = spec.to_dict(), list(space.spec.parameters)
    for path in paths:
        location = ("parameters", path)
        if Role.HELD in role_of(path):
            raise space.error(
                location, "is set by the sweep itself (budget, resources, seeds, one teacher for all)"
            )
        inner = next((p for p in paths[: paths.index(path)] if p.startswith(f"{path}.")), None)
        if inner is not None:
            raise space.error(location, f"would undo {inner}, which stands before it; put it first")
        if path == "train.steps" and space.spec.budget.steps is not None:
            raise space.error(location, "and budget.steps set the same; keep one of them")
        _check_conditions(space, path)
        for branch in _branches(space, path):
            known = paths_of(from_tree(apply_overrides(base, space.spec.settings(branch))))
            if path not in known:
                under = f" where {_shown(branch)}" if branch else ""
                raise space.error(
                    location, f"no such setting in {space.spec.recipe!r}{under}{nearest(path, known)}"
                )


def _check_values(space: SpaceFile, spec: RunSpec, dry: DryRun) -> None:
    """Each bound and option alone can be built, in every branch of its conditions; so can the ends of each
    two that shape the networks or one loss: fewer slots in a queue than are drawn from it."""
    base, parameters = spec.to_dict(), space.spec.parameters
    shaping = [p for p in parameters if Role.SHAPES in role_of(p) and Role.WEIGHT not in role_of(p)]
    for paths in [*((path,) for path in parameters), *combinations(shaping, 2)]:
        losses = {loss for loss in map(_loss_of, paths) if loss is not None}
        if len(losses) > 1:  # losses are built one by one
            continue
        *others, path = paths
        for branch, values in product(
            _branches(space, *paths), product(*(_tried(parameters[p], len(paths)) for p in paths))
        ):
            drawn = dict(zip(paths, values, strict=True))
            settings = space.spec.settings({**branch, **drawn})
            beside = "".join(f" with {other}={drawn[other]!r}" for other in others)
            try:
                dry.check(applied(base, settings, only=path), next(iter(losses), None))
            except UserError as error:
                location = ("parameters", path, parameters[path].kind)
                raise space.error(location, f"{drawn[path]!r} cannot be used{beside}: {error}") from None


def _check_drawn(space: SpaceFile, spec: RunSpec) -> None:
    """Whole configurations as trials will draw them: what no single parameter forbids, several may."""
    sweep, base = space.spec, spec.to_dict()
    points = sweep.grid_points() if sweep.searcher.name == "grid" else sweep.random_points(DRAWN)
    for point in points[:DRAWN]:
        settings = sweep.settings(point)
        try:
            applied(base, settings)
        except UserError as error:
            within = any(a.startswith(f"{b}.") for a in settings for b in settings)
            hint = "; `when:` lets a parameter count under one choice only" if within else ""
            raise space.error(("parameters",), f"{_shown(settings)} cannot be used: {error}{hint}") from None


def _loss_of(path: str) -> str | None:
    """The loss that a path belongs to, if it belongs to one."""
    match path.split("."):
        case ["distill", "losses", loss, *_]:
            return loss
    return None


def _tried(parameter: Parameter, together: int) -> list[Any]:
    """Values that stand for all; of numbers that are tried with others the lowest and the highest."""
    values = parameter.extremes()
    if together == 1:
        return [*values, *parameter.between()]
    numbers = [v for v in values if isinstance(parameter.setting(v), int | float)]
    if len(numbers) < len(values):
        return values
    return list({min(numbers, key=parameter.setting): 0, max(numbers, key=parameter.setting): 0})


def _branches(space: SpaceFile, *paths: str) -> list[dict[str, Any]]:
    """Values of other choices under which the parameters at `paths` count; one empty branch if they always
    do, none if one of them is bound by the value of another."""
    parameters, bound = space.spec.parameters, list(paths)
    for path in bound:  # grows
        bound += [other for other in parameters[path].when if other not in bound]
    others = bound[len(paths) :]
    if any(path in parameters[other].when for other in bound for path in paths):
        return []
    points = product(*(parameters[other].options for other in others))
    branches = [space.spec.active(dict(zip(others, point, strict=True))) for point in points]
    counting = [b for b in branches if all(parameters[path].applies(b) for path in paths)]
    return [b for k, b in enumerate(counting) if b not in counting[:k]]


def _check_conditions(space: SpaceFile, path: str) -> None:
    """`when` names choices that stand before, and values that they have."""
    parameters = space.spec.parameters
    before = list(parameters)[: list(parameters).index(path)]
    for other, wanted in parameters[path].when.items():
        location = ("parameters", path, "when", other)
        if other not in before:
            hint = nearest(other, parameters)
            raise space.error(location, f"names no parameter that stands before it{hint}")
        options = parameters[other].options
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if value not in options:
                raise space.error(
                    location, f"{other} is never {value!r}{nearest(str(value), map(str, options))}"
                )


def _shown(branch: Mapping[str, Any]) -> str:
    return " and ".join(f"{path} is {value}" for path, value in branch.items())
