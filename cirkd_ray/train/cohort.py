"""Which runs can be trained as a cohort: those that are equal in what its members share."""

from __future__ import annotations

from collections.abc import Mapping

from cirkd_ray.config import RunSpec
from cirkd_ray.config.applied import changed
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.errors import ConfigError

TEACHER = "teacher"


def check_cohort(specs: Mapping[str, RunSpec]) -> None:
    """Require that runs can share batches and a teacher, as the roles of their settings say.

    A run without distillation learns from no teacher, and can share with any.

    Args:
        specs: name -> resolved recipe.

    Raises:
        ConfigError: with the setting, the two runs and both values.
    """
    found = unshared(specs)
    if found:
        key, (one, before), (other, now) = found
        raise ConfigError(
            f"{key}: is {before!r} in {one} and {now!r} in {other}; runs that are trained together share it"
        )


def unshared(specs: Mapping[str, RunSpec]) -> tuple[str, tuple[str, object], tuple[str, object]] | None:
    """The first setting in which two runs differ that a cohort shares, with both runs and values."""

    def counts(path: str) -> bool:
        return Role.COHORT in role_of(path) and path.split(".")[0] != TEACHER

    def teaches(path: str) -> bool:
        return path.split(".")[0] == TEACHER

    taught = {name: spec for name, spec in specs.items() if spec.distill is not None}
    for group, decides in ((specs, counts), (taught, teaches)):
        trees = [(name, spec.to_dict()) for name, spec in group.items()]
        for name, tree in trees[1:]:
            for key, (before, now) in changed(trees[0][1], tree, decides).items():
                return key, (trees[0][0], before), (name, now)
    return None


def cohorts_of(specs: Mapping[str, RunSpec], parts: int = 1) -> list[list[str]]:
    """Names of runs that can share, together: as few cohorts as possible, but `parts` at least.

    Args:
        specs: name -> resolved recipe.
        parts: cohorts that each group of runs that can share is split into, as far as it has runs.
    """
    groups: list[list[str]] = []
    for name in specs:
        fits = (g for g in groups if unshared({each: specs[each] for each in [*g, name]}) is None)
        group = next(fits, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return [part for group in groups for part in (group[i::parts] for i in range(parts)) if part]
