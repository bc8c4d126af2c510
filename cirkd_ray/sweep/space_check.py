"""A search space against its recipe: everything that can be known to go wrong before a trial starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import Any

from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.applied import differences, paths_of
from cirkd_ray.config.composition import Tree, apply_overrides, flatten
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.errors import ConfigError, UserError, nearest
from cirkd_ray.sweep.parameters import Parameter
from cirkd_ray.sweep.space import PAUSING, POPULATION
from cirkd_ray.sweep.space_file import SpaceFile
from cirkd_ray.train.space_build import Builder

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


def check_space(space: SpaceFile) -> RunSpec:
    """Check a space; returns `base_run`.

    Raises:
        ConfigError: with the line of the setting and what to do.
    """
    spec = base_run(space)
    _check_metrics(space)
    _check_pair(space)
    _check_schedule(space, spec)
    builder = Builder()
    try:
        builder.check(spec)
    except UserError as error:
        raise space.error(("recipe",), f"cannot be built: {error}") from None
    _check_parameters(space, spec, builder)
    _check_pairs(space, spec, builder)
    _check_drawn(space, spec)
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
    problem = None
    if searcher == "grid" and len(grids) < len(sweep.parameters):
        other = next(path for path in sweep.parameters if path not in grids)
        raise space.error(
            ("parameters", other), "searcher grid takes grids only; give a grid, or another searcher"
        )
    if grids and searcher != "grid":
        raise space.error(
            ("parameters", grids[0]), f"searcher {searcher} draws its values; make the grid a choice"
        )
    if (scheduler == "bohb") != (searcher == "bohb"):
        problem = f"scheduler {scheduler} and searcher {searcher}: BOHB is both or neither"
    elif scheduler in POPULATION and searcher != "random":
        problem = (
            f"scheduler {scheduler} changes values while trials train; use searcher random, not {searcher}"
        )
    elif sweep.multi_objective and scheduler != "none":
        problem = (
            f"scheduler {scheduler} judges trials by one metric, the space has {len(sweep.metric)}; use none"
        )
    elif sweep.multi_objective and searcher in ("hyperopt", "bohb"):
        problem = f"searcher {searcher} follows one metric, the space has {len(sweep.metric)}; use tpe"
    if problem:
        raise space.error(("scheduler", "name"), problem)
    if scheduler in POPULATION:
        _check_population(space)


def _check_population(space: SpaceFile) -> None:
    for path, parameter in space.spec.parameters.items():
        if Role.MUTABLE not in role_of(path) or parameter.when:
            raise space.error(
                ("parameters", path),
                f"{space.spec.scheduler.name} changes settings of a network that trains on; possible are "
                "loss weights, temperatures, optim.lr and their like, without conditions",
            )
        if space.spec.scheduler.name == "pb2" and parameter.kind not in ("uniform", "loguniform"):
            raise space.error(("parameters", path), "pb2 takes uniform or loguniform; use pbt for choices")
        if Role.WEIGHT in role_of(path) and 0 in [parameter.setting(value) for value in parameter.extremes()]:
            raise space.error(
                ("parameters", path, parameter.kind),
                f"{space.spec.scheduler.name} cannot take 0: a term without weight is not built, so its "
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


def _check_parameters(space: SpaceFile, spec: RunSpec, builder: Builder) -> None:
    """Every path exists, every bound and option is a valid recipe that can be built, in every branch of its
    conditions.
    """
    base = spec.to_dict()
    for path, parameter in space.spec.parameters.items():
        location = ("parameters", path)
        if Role.HELD in role_of(path):
            raise space.error(
                location, "is set by the sweep itself (budget, resources, seeds, one teacher for all)"
            )
        paths = list(space.spec.parameters)
        inner = next((p for p in paths[: paths.index(path)] if p.startswith(f"{path}.")), None)
        if inner is not None:
            raise space.error(location, f"would undo {inner}, which stands before it; put it first")
        if path == "train.steps" and space.spec.budget.steps is not None:
            raise space.error(location, "and budget.steps set the same; keep one of them")
        for branch in _branches(space, path):
            before = from_tree(apply_overrides(base, space.spec.settings(branch)))
            known = paths_of(before)
            if path not in known:
                under = f" where {_shown(branch)}" if branch else ""
                raise space.error(
                    location, f"no such setting in {space.spec.recipe!r}{under}{nearest(path, known)}"
                )
            for value in [*parameter.extremes(), *parameter.between()]:
                setting = {path: parameter.setting(value)}
                try:
                    builder.check(
                        _applied(apply_overrides(before.to_dict(), setting), setting), _loss_of(path)
                    )
                except UserError as error:
                    raise space.error(
                        (*location, parameter.kind), f"{value!r} cannot be used: {error}"
                    ) from None


def _check_drawn(space: SpaceFile, spec: RunSpec) -> None:
    """Whole configurations as trials will draw them: what no single parameter forbids, several may."""
    sweep = space.spec
    points = sweep.grid_points() if sweep.searcher.name == "grid" else sweep.random_points(DRAWN)
    for point in points[:DRAWN]:
        settings = sweep.settings(point)
        try:
            _applied(apply_overrides(spec.to_dict(), settings), settings)
        except UserError as error:
            within = any(a.startswith(f"{b}.") for a in settings for b in settings)
            hint = "; `when:` lets a parameter count under one choice only" if within else ""
            raise space.error(("parameters",), f"{_shown(settings)} cannot be used: {error}{hint}") from None


def _applied(tree: Tree, settings: Mapping[str, Any]) -> RunSpec:
    """The resolved recipe, in which `settings` are in effect."""
    spec = from_tree(tree)
    differing = differences(spec, settings)
    if differing:
        raise ConfigError(f"the resolved recipe has {differing[0]}")
    return spec


def _check_pairs(space: SpaceFile, spec: RunSpec, builder: Builder) -> None:
    """What each parameter allows, two may forbid together: fewer slots in a memory than are drawn from it."""
    parameters = space.spec.parameters
    shaping = [p for p in parameters if Role.SHAPES in role_of(p) and Role.WEIGHT not in role_of(p)]
    for first, second in combinations(shaping, 2):
        losses = {loss for loss in map(_loss_of, (first, second)) if loss is not None}
        if len(losses) > 1:  # losses are built one by one
            continue
        for branch in _branches_of_pair(space, first, second):
            for values in product(_ends(parameters[first]), _ends(parameters[second])):
                drawn = {**branch, first: values[0], second: values[1]}
                try:
                    tree = apply_overrides(spec.to_dict(), space.spec.settings(drawn))
                    builder.check(from_tree(tree), next(iter(losses), None))
                except UserError as error:
                    raise space.error(
                        ("parameters", second, parameters[second].kind),
                        f"{values[1]!r} cannot be used with {first}={values[0]!r}: {error}",
                    ) from None


def _loss_of(path: str) -> str | None:
    """The loss that a path belongs to, if it belongs to one."""
    match path.split("."):
        case ["distill", "losses", loss, *_]:
            return loss
    return None


def _ends(parameter: Parameter) -> list[Any]:
    """Lowest and highest number; of other options all."""
    values = parameter.extremes()
    numbers = [v for v in values if isinstance(parameter.setting(v), int | float)]
    if len(numbers) < len(values):
        return values
    return list({min(numbers, key=parameter.setting): 0, max(numbers, key=parameter.setting): 0})


def _branches_of_pair(space: SpaceFile, first: str, second: str) -> Iterator[dict[str, Any]]:
    """Values of other choices under which both parameters count and neither is bound by the other's."""
    for one, two in product(_branches(space, first), _branches(space, second)):
        branch = {**one, **two}
        if first not in branch and second not in branch and all(branch[path] == one[path] for path in one):
            yield branch


def _branches(space: SpaceFile, path: str) -> list[dict[str, Any]]:
    """Values of other choices under which the parameter at `path` counts; one empty branch if always."""
    parameters = space.spec.parameters
    order = list(parameters)
    branches: list[dict[str, Any]] = [{}]
    for other, wanted in parameters[path].when.items():
        location = ("parameters", path, "when", other)
        if other not in parameters or order.index(other) >= order.index(path):
            raise space.error(
                location, f"names no parameter that stands before it{nearest(other, parameters)}"
            )
        options = parameters[other].options
        allowed = wanted if isinstance(wanted, list) else [wanted]
        for value in allowed:
            if value not in options:
                raise space.error(
                    location, f"{other} is never {value!r}{nearest(str(value), map(str, options))}"
                )
        branches = [
            {**parent, **branch, other: value}
            for branch in branches
            for value in allowed
            for parent in _branches(space, other)
        ]
    return branches


def _shown(branch: Mapping[str, Any]) -> str:
    return " and ".join(f"{path} is {value}" for path, value in branch.items())
