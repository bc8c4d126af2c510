"""Sweeps whose trials are trained in packs: each trial's figures and end are its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster.measuring import on_a_worker
from cirkd_ray.cluster.packs import packed
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.cluster.room import _measure, fitted
from cirkd_ray.cluster.stopping import ask_to_leave, in_this_call, is_to_leave
from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.cluster.train import fit_cohort
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import TrainingError, UserError
from cirkd_ray.files import write_text
from cirkd_ray.sweep.folder import SweepData, read_sweep
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import last_step
from cirkd_ray.train.local import run_local
from cirkd_ray.train.memory import Taken
from cirkd_ray.train.outcome import FAILURE
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.sweep_stubs import stub_plan, stub_run
from tests.tinyrun import figures, tiny_baseline, tiny_distillation

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def stub_pack(
    runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path, leaving: bool
) -> list[dict[str, Any] | Exception]:
    """A cohort that trains nothing; of three members one lacks memory."""
    assert leaving
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "members", " ".join(directory.path.parent.name for _, directory in runs))
    found: list[dict[str, Any] | Exception] = []
    for number, (spec, directory) in enumerate(runs):
        if len(runs) == 3 and number == 1:
            found.append(TrainingError("OutOfMemoryError: 8 GiB"))
            continue
        try:
            found.append(stub_run(spec, directory, [], None))
        except TrainingError as error:
            found.append(error)
    return found


def swept(
    folder: Path, size: int, together: Any, steps: int = 4, places: int = 1, **space: Any
) -> tuple[SweepData, list[list[str]]]:
    """A sweep in packs, and the members of each."""
    plan, sweep = stub_plan(folder, steps, resources={"pack": size}, **space)
    plan.base["cluster"]["workers"] = 1
    with packed(folder, size, places, sweep.trials, together) as train:
        make_tuner(plan, sweep, steps, 1, size * places, train).fit()
    members = [path.read_text().split() for path in sorted(folder.rglob("members"))]
    return read_sweep(folder), members


def test_trials_are_packed_and_one_without_memory_is_trained_alone(ray_cluster: None, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"uniform": [0.001, 0.02]}, "task.aux_weight": {"choice": [0.5, 2.0]}}
    data, members = swept(tmp_path / "s", 3, stub_pack, parameters=parameters, budget={"trials": 5})
    assert sorted(map(len, members)) == [1, 2, 3]
    assert {name for pack in members for name in pack} == {trial.id for trial in data.trials}
    for trial in data.trials:
        fails = trial.values["task.aux_weight"] == 2.0
        assert trial.status == ("failed" if fails else "finished")
        assert fails or trial.step == 4
        assert is_to_leave(data.folder / "trials" / trial.id)


def test_the_size_of_packs_is_measured_on_a_worker(ray_cluster: None, teacher: Path, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"uniform": [0.001, 0.02]}}
    tree = {
        "recipe": "tiny",
        "parameters": parameters,
        "resources": {"pack": "auto"},
        "budget": {"trials": 3},
    }
    base, said = tiny_distillation(teacher, cluster={"workers": 1, "device": "cpu"}), list[str]()
    found = fitted(SweepSpec.model_validate(tree), base, Plan(1, 1.0, 0), 1, tmp_path, said.append)
    assert 1 <= found.pack <= 3
    assert said[-1].startswith(f"resources.pack: packs of {found.pack}: a step takes")
    assert f"{found.pack} x " in said[-1]
    missing = base.model_copy(update={"data": base.data.model_copy(update={"name": "camvid", "root": "/no"})})
    with pytest.raises(UserError):
        on_a_worker(
            _measure, Plan(1, 1.0, 0), base, {"a": missing.to_dict()}, {"a": Taken(0, 0, 0)}, None, 0, False
        )


def test_a_trial_that_has_ended_leaves_and_the_others_train_as_they_do_alone(
    ray_cluster: None, tmp_path: Path
) -> None:
    steps = {"steps": 60, "log_every": 5, "validate_every": 60, "checkpoint_every": 60, "validate_limit": 2}
    spec = tiny_baseline(cluster={"workers": 1, "device": "cpu"}, train=steps)
    ended, other = (RunDirectory(tmp_path / "trials" / name / "g0") for name in "ab")

    def end() -> None:
        while not ended.read_metrics():
            time.sleep(0.05)
        ask_to_leave(ended.path.parent)

    for directory in (ended, other):
        directory.create(spec)
    threading.Thread(target=in_this_call(end), daemon=True).start()
    found = fit_cohort([(spec, ended), (spec, other)], tmp_path / "packs" / "p1", leaving=True)
    assert isinstance(found[0], TrainingError)
    assert 5 <= last_step(ended.checkpoints) < 60
    assert not (ended.path / FAILURE).exists()
    alone = RunDirectory(tmp_path / "alone")
    alone.create(spec)
    run_local(spec, alone)
    assert figures(other) == figures(alone)
    assert found[1] == other.read_result()
