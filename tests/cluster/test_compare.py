"""Comparisons on a Ray: methods of a seed share a cohort, and score what they score apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster import equal_time
from cirkd_ray.cluster.compare import run_comparison
from cirkd_ray.cluster.pool import Job, run_jobs
from cirkd_ray.cluster.resources import Plan
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


def test_methods_of_equal_time_train_as_long_as_the_baseline(
    ray_cluster: None, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"train": {**STEPS, "steps": 4}, "cluster": {"workers": 1, "device": "cpu"}}
    kd = tiny_distillation(teacher, **changes, distill={"losses": {"kd": {"kind": "kd"}}})
    methods = {"baseline": tiny_baseline(**changes), "kd": kd}
    measured: list[list[str]] = []

    def clock(specs: dict[str, RunSpec], plan: object) -> dict[str, float]:
        measured.append(list(specs))
        return {name: {"baseline": 0.5, "kd": 1.0, "slow": 2.0}[name] for name in specs}

    monkeypatch.setattr(equal_time, "measure", clock)
    said: list[str] = []
    for some in (methods, methods, {**methods, "slow": kd}):  # begun, continued, with a method more
        data = run_comparison(some, 1, tmp_path / "c", tmp_path, said.append, 1, budget="time")
    assert measured == [["baseline", "kd"], ["baseline", "slow"]]
    assert {name: runs[0]["steps"] for name, runs in data.results.items()} == {
        "baseline": 4,
        "kd": 2,
        "slow": 1,
    }
    assert {name: share.seconds for name, share in data.timing.items()} == {
        "baseline": 0.5,
        "kd": 1.0,
        "slow": 2.0,
    }
    assert any("kd takes 1.000 s a step and trains 2" in text for text in said)


def test_a_step_is_timed_where_runs_train_and_with_a_workers_share(ray_cluster: None, teacher: Path) -> None:
    specs = {"baseline": tiny_baseline(), "kd": tiny_distillation(teacher)}
    found = equal_time.measure(specs, Plan(2, 1.0, 0))
    assert found.keys() == specs.keys()
    assert all(seconds > 0 for seconds in found.values())
    missing = {"kd": tiny_distillation(teacher / "missing")}
    with pytest.raises(UserError):
        equal_time.measure(missing, Plan(1, 1.0, 0))
