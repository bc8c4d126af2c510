"""How many trials are trained together: what the heaviest takes, what fits, and what still pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.errors import UserError
from cirkd_ray.files import size_text
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.sweep.space_check import apart
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.memory import Taken, counted, most_that_fit, together

GAIN = 0.03
"""Share of a member's time that one more must save, or the pack is large enough."""
TRIED = 4
"""Members by which the heaviest values are told where a pack has no size yet."""


class Choice(NamedTuple):
    """A pack's size, and why."""

    size: int
    reason: str


def heaviest(sweep: SweepSpec, base: RunSpec, dry: DryRun) -> RunSpec:
    """The trial that takes the most memory, by what its tensors count: of each parameter in turn the heaviest
    end or option, beside those that were found before.

    Args:
        sweep: the space.
        base: the recipe of a trial.
        dry: counts.
    """
    members = TRIED if sweep.resources.pack == "auto" else sweep.pack
    values: dict[str, Any] = {}

    def weight(tried: dict[str, Any]) -> int:
        spec = from_tree(apply_overrides(base.to_dict(), sweep.settings(tried)))
        dry.check(spec)
        return together([counted(spec, dry)] * members)

    for path, parameter in sweep.parameters.items():
        role = role_of(path)
        if (Role.MUTABLE in role and Role.WEIGHT not in role) or not parameter.applies(values):
            continue  # a number that shapes nothing
        weights: dict[Any, int] = {}
        for value in parameter.extremes():
            try:
                weights[value] = weight({**values, path: value})
            except UserError:  # not beside these values
                continue
        if len(set(weights.values())) > 1:
            values[path] = max(weights, key=lambda value: weights[value])
        elif weights and parameter.options:  # others may be bound to it
            values[path] = next(iter(weights))
    return from_tree(apply_overrides(base.to_dict(), sweep.settings(values)))


def sharing(sweep: SweepSpec) -> int:
    """How many trials can share at most: those with the same values of what a cohort shares.

    Of searchers that learn it is what random trials would give.
    """
    paths = apart(sweep)
    grid = sweep.searcher.name == "grid"
    points = sweep.grid_points()[: sweep.trials] if grid else sweep.random_points(sweep.trials)
    groups = Counter(tuple(str(sweep.settings(point).get(path)) for path in paths) for point in points)
    return max(groups.values())


def choose(each: Taken, there: int | None, bounds: Mapping[str, int]) -> Choice:
    """The size of a pack: as large as fits and pays.

    Args:
        each: what the heaviest member takes.
        there: bytes that a worker has for it; None where nobody knows.
        bounds: reason -> the largest size that it leaves.
    """
    bounds = dict(bounds)
    if there is not None:
        bounds[f"no more fit into {size_text(there)}"] = max(1, most_that_fit(each, there))
    why = min(bounds, key=lambda reason: bounds[reason])
    size = 1
    while size < bounds[why] and each.seconds(size + 1) <= (1 - GAIN) * each.seconds(size):
        size += 1
    if size < bounds[why]:
        why = f"one more would save less than {GAIN:.0%}"
    seconds = (
        f"a step takes {each.shared_seconds:.3g} s for all and {each.own_seconds:.3g} s for each, "
        f"{each.seconds(size):.3g} s a member"
    )
    return Choice(size, f"{seconds}; {why}; {memory_text(each, size)}")


def memory_text(each: Taken, members: int) -> str:
    """What so many members take, added up."""
    process = f"{size_text(each.process)} the process + " if each.process else ""
    return (
        f"{size_text(together([each] * members))} = {process}{size_text(each.teacher)} the teacher + "
        f"{size_text(each.work)} the work of a step + {members} x {size_text(each.own)} a member"
    )
