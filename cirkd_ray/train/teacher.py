"""A run's teacher: the recipe that trains it, where it is kept, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.composition import apply_overrides, flatten, overrides_from
from cirkd_ray.config.settings import computes
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.rundir import RunDirectory


def slug(name: str) -> str:
    """A recipe's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def teacher_recipe(spec: RunSpec) -> RunSpec:
    """The teacher's own run: its recipe on this run's data and cluster, then `teacher.set`."""
    assert spec.teacher is not None
    assert spec.teacher.train is not None
    tree = load_tree(spec.teacher.train, "teacher.train")
    shared = spec.to_dict()
    tree = {**tree, "data": shared["data"], "cluster": shared["cluster"], "seed": spec.seed}
    found = from_tree(apply_overrides(tree, overrides_from(spec.teacher.set)))
    if found.teacher is not None and found.teacher.train is not None and found.distill is not None:
        raise ConfigError(
            f"teacher.train: {spec.teacher.train!r} trains a teacher itself; "
            "train it first, then give teacher.weights"
        )
    return found


def fingerprint(spec: RunSpec, data_root: bool = False) -> str:
    """Ten digits that are equal where two runs compute the same.

    Args:
        spec: a run.
        data_root: the digits also tell places of the data apart. A run may be resumed where its data lies
            elsewhere; one that others reuse must not come from another `data.root`: there, the same data
            set's name may stand for other images.
    """
    kept = {k: v for k, v in flatten(spec.to_dict()).items() if computes(k)}
    digits = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
    return hashlib.sha256(f"{digits} {spec.data.root}".encode()).hexdigest()[:10] if data_root else digits


def teacher_directory(spec: RunSpec, out: Path) -> RunDirectory:
    """Where a recipe's teacher is trained: one place for all runs that want the same one on the same data."""
    assert spec.teacher is not None
    assert spec.teacher.train is not None
    plan = teacher_recipe(spec)
    digits = fingerprint(plan, data_root=True)
    return RunDirectory(out / "teachers" / f"{slug(spec.teacher.train)}-{digits}")


def with_weights(spec: RunSpec, weights: Path) -> RunSpec:
    """The same run, with its teacher's weights instead of the recipe that trains it."""
    tree = spec.to_dict()
    tree["teacher"] = {**tree["teacher"], "train": None, "set": [], "weights": str(weights)}
    return from_tree(tree)
