"""Comparisons on a Ray: methods of a seed share a cohort, and score what they score apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster.compare import run_comparison
from cirkd_ray.cluster.pool import Job, run_jobs
from cirkd_ray.compare.folder import read_comparison
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import TrainingError, UserError
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.sweep_stubs import stub_run
from tests.tinyrun import figures, tiny_baseline, tiny_distillation

pytestmark = pytest.mark.ray
STEPS = {"steps": 2, "validate_every": 2, "checkpoint_every": 2, "validate_limit": 2, "pictures": 0}


def stub_cohort(
    runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
) -> list[dict[str, Any] | UserError]:
    """A cohort in which one lacks memory."""
    return [
        TrainingError("OutOfMemoryError: CUDA out of memory")
        if directory.path.name == "large"
        else stub_run(spec, directory, [], None) | {"cohort": str(folder)}
        for spec, directory in runs
    ]


def test_jobs_of_a_cohort_are_trained_together_and_one_without_memory_alone(
    ray_cluster: None, tmp_path: Path
) -> None:
    spec, place = tiny_baseline(train={"steps": 2, "validate_every": 1}), tmp_path / "cohorts" / "s0"
    jobs = [Job(name, spec, tmp_path / name, place) for name in ("a", "large", "b")]
    jobs.append(Job("other", spec, tmp_path / "other", tmp_path / "cohorts" / "s1"))
    said: list[str] = []
    found = run_jobs(jobs, 2, said.append, stub_run, stub_cohort)
    assert [found[name].get("cohort") for name in ("a", "large", "b", "other")] == [  # type: ignore[union-attr]
        str(place),
        None,
        str(place),
        None,
    ]
    assert any("large: there was too little memory" in text for text in said)
    assert run_jobs(jobs, 2, said.append, stub_run, stub_cohort).keys() == found.keys()


def test_methods_share_where_they_can(teacher: Path) -> None:
    specs = {
        "baseline": tiny_baseline(),
        "kd": tiny_distillation(teacher),
        "large": tiny_distillation(teacher, train={"batch_size": 8}),
        "other": tiny_distillation(teacher.parent),
        "cwd": tiny_distillation(teacher, optim={"lr": 0.5}),
    }
    assert cohorts_of(specs) == [["baseline", "kd", "cwd"], ["large"], ["other"]]
    assert cohorts_of(specs, parts=2) == [["baseline", "cwd"], ["kd"], ["large"], ["other"]]


def test_a_comparison_scores_together_what_it_scores_apart(
    ray_cluster: None, teacher: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"train": STEPS, "cluster": {"workers": 1, "device": "cpu"}}
    broken = {"optim": {"lr": 1e30, "warmup_steps": 0}}
    methods = {
        "baseline": tiny_baseline(**changes),
        "kd": tiny_distillation(teacher, **changes, distill={"losses": {"kd": {"kind": "kd"}}}),
        "broken": tiny_distillation(teacher, **changes, **broken),
    }
    said: list[str] = []
    folders = {"together": tmp_path / "together", "apart": tmp_path / "apart"}
    for name, folder in folders.items():
        some = methods if name == "together" else {k: v for k, v in methods.items() if k != "broken"}
        run_comparison(some, 1, folder, tmp_path, said.append, 1, apart=name == "apart")
    assert sum("methods of a seed are trained together" in text for text in said) == 1
    assert set(read_comparison(folders["together"]).failures) == {"broken-s0"}
    for run in ("baseline-s0", "kd-s0"):
        first, second = (RunDirectory(folder / "runs" / run) for folder in folders.values())
        assert figures(first) == figures(second)
        assert "finished" in (first.path / "log.txt").read_text()
