"""The same run without distillation: what a distilled student is compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.teacher import fingerprint, slug


def has_baseline(spec: RunSpec) -> bool:
    """Whether the recipe asks for a run without distillation beside its own."""
    return spec.baseline and spec.distill is not None


def baseline_recipe(spec: RunSpec) -> RunSpec:
    """The same run without its teacher."""
    tree = {**spec.to_dict(), "teacher": None, "distill": None, "baseline": False, "published": None}
    return from_tree({**tree, "name": f"{spec.name}/baseline"})


def baseline_directory(plan: RunSpec, out: Path) -> RunDirectory:
    """Where a baseline is kept: one place for all recipes that distil the same student.

    `DataGuard.shared` tells baselines of other data apart.
    """
    return RunDirectory(out / "baselines" / f"{slug(plan.model.name)}-{fingerprint(plan)}")


def baseline_block(directory: RunDirectory, folder: Path) -> dict[str, Any]:
    """What a run's `result.json` says of its baseline: its best and last validation, and where it lies.

    Args:
        directory: of the baseline.
        folder: of the run, from which the path is told: both may be moved together.
    """
    found, path = directory.read_result() or {}, os.path.relpath(directory.path, folder)
    return {"path": path, **{key: found.get(key) for key in ("best", "last", "parameters")}}
