"""What is compared: the methods of a comparison, what must be equal between them, and its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cirkd_ray.compare.budget import Budget
from cirkd_ray.compare.folder import BASELINE, COMPARISON
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.applied import changed, paths_of
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.files import write_text
from cirkd_ray.train.rundir import movable_tree, moved_spec
from cirkd_ray.train.teacher import slug


def methods_of(specs: Sequence[tuple[str, RunSpec]], allow: Sequence[str] = ()) -> dict[str, RunSpec]:
    """Name -> recipe of what is compared, the baseline first: the one without distillation, or one made.

    Args:
        specs: (recipe as the user named it, resolved recipe).
        allow: paths (or their beginnings) that may differ between the methods.

    Raises:
        ConfigError: two recipes differ in more than the method.
    """
    names = _short([name for name, _ in specs])
    methods = {names[index]: spec for index, (_, spec) in enumerate(specs)}
    if len(methods) < len(specs):
        raise ConfigError("RECIPE: two recipes have the same name; give each once")
    plain = [name for name, spec in methods.items() if spec.distill is None]
    if len(plain) > 1:
        raise ConfigError(
            f"RECIPE: {plain[0]} and {plain[1]} both train without distillation; one baseline is enough"
        )
    first_name, first = next(iter(methods.items()))
    for name, spec in methods.items():
        _check_equal(first_name, first, name, spec, allow)
    made = from_tree({**first.to_dict(), "distill": None, "teacher": None})
    control = methods.pop(plain[0]) if plain else made
    if BASELINE in methods:
        raise ConfigError(
            f"RECIPE: a recipe that distils is named {BASELINE!r}, as the one without distillation is in a "
            "comparison; give its file another name"
        )
    return {BASELINE: control, **methods}


def _short(names: Sequence[str]) -> list[str]:
    """Names without the folders that all share; of files, their stems where these differ."""
    files = [name.endswith((".yaml", ".yml")) for name in names]
    paths = [Path(name).with_suffix("") if f else Path(name) for name, f in zip(names, files, strict=True)]
    parts = [(p.name,) if f else p.parts for p, f in zip(paths, files, strict=True)]
    if len(set(parts)) < len(parts):
        parts = [p.parts for p in paths]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [slug("-".join(p[shared:]).strip("/")) for p in parts]


def _check_equal(first_name: str, first: RunSpec, name: str, spec: RunSpec, allow: Sequence[str]) -> None:
    """What must be equal in a comparison is: else it is not the methods that are compared."""

    def counts(path: str) -> bool:
        return (Role.EQUAL | Role.COMPUTES) in role_of(path) and not path.startswith(tuple(allow))

    found = changed(first.to_dict(), spec.to_dict(), counts)
    for key in sorted(found, key=lambda k: not k.endswith(".name")):
        before, now = found[key]
        equal = shlex.quote(f"{key}={before}")
        raise ConfigError(
            f"{key}: is {before!r} in {first_name} and {now!r} in {name}; methods are "
            f"compared at one setting: --set {equal}, or --differ {key} if it is the method"
        )


def seeds_of(methods: dict[str, RunSpec], count: int) -> range:
    """The seeds of a comparison: so many, from the recipes' own on.

    Raises:
        ConfigError: the recipes have different ones.
    """
    first_name, first = next(iter(methods.items()))
    for name, spec in methods.items():
        if spec.seed != first.seed:
            raise ConfigError(
                f"seed: is {first.seed} in {first_name} and {spec.seed} in {name}; the runs of a comparison "
                f"have equal ones, from this on: --set seed={first.seed}"
            )
    return range(first.seed, first.seed + count)


def check_differ(paths: Sequence[str], spec: RunSpec) -> None:
    """`--differ` names settings that exist.

    Raises:
        ConfigError: one does not.
    """
    known = paths_of(spec)
    for path in paths:
        if path not in known:
            raise ConfigError(f"--differ {path}: no such setting{nearest(path, known)}")


def open_comparison(methods: dict[str, RunSpec], folder: Path, budget: Budget = "steps") -> None:
    """Make the folder, or check that what it has of these methods is the same (more may be added).

    Raises:
        ConfigError: it began one of them with other settings, or with another budget.
    """
    path = folder / COMPARISON
    known: dict[str, Any] = {}
    if path.is_file() and any(folder.glob("runs/*/metrics.jsonl")):  # else it is a start that failed
        tree = read_yaml(path)
        known, before = tree["methods"], tree.get("budget", "steps")
        if before != budget:
            raise ConfigError(
                f"{folder}: was begun with --budget {before}, not {budget}; choose another --name"
            )
    trees = {name: movable_tree(spec, folder) for name, spec in methods.items()}
    for name, spec in methods.items():
        begun = moved_spec(known.get(name, trees[name]), folder)
        for key, (before, now) in changed(begun.to_dict(), spec.to_dict()).items():
            raise ConfigError(
                f"{folder}: has {name} with {key}={before!r}, not {now!r}; choose another --name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"budget": budget, "methods": {**known, **trees}}
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def begun_comparison(folder: Path) -> tuple[dict[str, RunSpec], int, Budget]:
    """The methods, seeds and budget that the comparison in `folder` was begun with.

    Raises:
        ConfigError: there is none.
    """
    if not (folder / COMPARISON).is_file():
        raise ConfigError(f"--resume {folder}: no comparison there ({COMPARISON} is missing)")
    tree = read_yaml(folder / COMPARISON)
    methods = {name: moved_spec(method, folder) for name, method in tree["methods"].items()}
    seeds = [path.name.rpartition("-s")[2] for path in folder.glob("runs/*-s*/")]
    first = next(iter(methods.values())).seed
    count = 1 + max((int(seed) - first for seed in seeds if seed.isdecimal()), default=0)
    return methods, count, tree.get("budget", "steps")
