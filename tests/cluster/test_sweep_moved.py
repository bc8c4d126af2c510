"""A sweep whose folder was copied goes on in the copy and leaves the original as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.sweep.folder import read_sweep
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.sweep_stubs import stub_plan, stub_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def mended_run(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> dict[str, Any]:
    """A `stub_run` that no longer fails."""
    whole = from_tree({**spec.to_dict(), "task": {"aux_weight": 1.0}})
    return stub_run(whole, directory, callbacks, resume_from)


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_copied_sweep_goes_on_in_the_copy(ray_cluster: None, tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "s", tmp_path / "new" / "s"
    space: dict[str, Any] = {
        "parameters": {"task.aux_weight": {"grid": [1.0, 2.0]}},
        "searcher": {"name": "grid"},
        "budget": {"trials": 2},
    }
    plan, sweep = stub_plan(old, **space)
    make_tuner(plan, sweep, 4, 1, 2, stub_run).fit()
    assert sorted(trial.status for trial in read_sweep(old).trials) == ["failed", "finished"]
    shutil.copytree(old, new)
    before = files_of(old)
    for path in new.glob("trials/*/**/failure.json"):
        path.unlink()  # what made it fail is mended
    plan, sweep = stub_plan(new, **space)
    make_tuner(plan, sweep, 4, 1, 2, mended_run).fit()
    assert [trial.status for trial in read_sweep(new).trials] == ["finished"] * 2
    assert all(
        json.loads(path.read_text())["status"] == "finished" for path in new.glob("trials/*/outcome.json")
    )
    assert files_of(old) == before
