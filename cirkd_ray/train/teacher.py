"""A run's teacher: the recipe that trains it, where it is kept, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.composition import apply_overrides, flatten, overrides_from
from cirkd_ray.config.settings import computes
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import write_text
from cirkd_ray.train.rundir import RunDirectory

if TYPE_CHECKING:
    from cirkd_ray.train.same_data import DataGuard

TEACHER = "teacher.txt"
"""In the folder of a run or sweep whose recipe trains its teacher: where that one is, as seen from there."""


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


def fingerprint(spec: RunSpec) -> str:
    """Ten digits that are equal where two runs compute the same, on the same data wherever these lie."""
    kept = {k: v for k, v in flatten(spec.to_dict()).items() if computes(k)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def teacher_directory(spec: RunSpec, out: Path, data: DataGuard | None = None) -> RunDirectory:
    """Where a recipe's teacher is trained: one place for all runs that want the same one on the same data.

    Args:
        spec: the run.
        out: where teachers are kept.
        data: the run's data; a teacher of other data is left where it is, and another place is named.
    """
    folder = _usual_directory(spec, out)
    return RunDirectory(folder if data is None else data.on(teacher_recipe(spec)).shared(folder))


def used_teacher(spec: RunSpec, out: Path, used: str, folder: Path, anew: str) -> RunDirectory:
    """The teacher that a sweep or comparison began with, wherever its folder and `out` lie now.

    Args:
        spec: a run of it.
        out: where teachers are kept.
        used: the teacher's folder, as it was written down.
        folder: of the sweep or comparison.
        anew: what to do if it wants another one now, for the message.

    Raises:
        ConfigError: the recipe wants another one now.
    """
    usual, name = _usual_directory(spec, out), Path(used).name
    found = RunDirectory(usual.with_name(name))
    named = name == usual.name or name.startswith(f"{usual.name}-")
    # One that was named otherwise, by an earlier version or by hand: then its own recipe decides.
    if not named and not (
        found.recipe.is_file() and fingerprint(found.spec()) == fingerprint(teacher_recipe(spec))
    ):
        raise ConfigError(f"{folder}: began with the teacher {name}, whose recipe has changed since; {anew}")
    return found


def teacher_of(spec: RunSpec, folder: Path, out: Path, data: DataGuard, anew: str) -> RunDirectory:
    """The teacher of the run or sweep in `folder`: the one that it began with, or one that is chosen now.

    Raises:
        ConfigError: as `used_teacher`.
    """
    file = folder / TEACHER
    if file.is_file():
        return used_teacher(spec, out, file.read_text(), folder, anew)
    directory = teacher_directory(spec, out, data)
    write_text(file, os.path.relpath(directory.path, folder))
    return directory


def _usual_directory(spec: RunSpec, out: Path) -> Path:
    """By the teacher's recipe; `DataGuard.shared` tells teachers of other data apart."""
    assert spec.teacher is not None
    assert spec.teacher.train is not None
    plan = teacher_recipe(spec)
    digits = fingerprint(plan)
    return out / "teachers" / f"{slug(spec.teacher.train)}-{digits}"


def with_weights(spec: RunSpec, weights: Path) -> RunSpec:
    """The same run, with its teacher's weights instead of the recipe that trains it."""
    tree = spec.to_dict()
    tree["teacher"] = {**tree["teacher"], "train": None, "set": [], "weights": str(weights)}
    return from_tree(tree)
