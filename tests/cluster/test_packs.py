"""Sweeps whose trials are trained in packs: each trial's figures and end are its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from cirkd_ray.cluster.packs import TrainPacked, start_packs
from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.cluster.train import fit_cohort
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import TrainingError
from cirkd_ray.files import write_text
from cirkd_ray.sweep.folder import SweepData, read_sweep
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.sweep_stubs import stub_plan, stub_run
from tests.tinyrun import figures

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
    plan, sweep = stub_plan(folder, steps, **space)
    plan.base["cluster"]["workers"] = 1
    packs = start_packs(folder, size, places, sweep.trials, together)
    make_tuner(plan, sweep, steps, 1, size * places, TrainPacked(packs)).fit()
    ray.kill(packs)
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


def test_packed_trials_train_and_stop_as_they_do_alone(ray_cluster: None, tmp_path: Path) -> None:
    data, _ = swept(
        tmp_path / "s",
        3,
        fit_cohort,
        steps=6,
        parameters={"optim.lr": {"grid": [0.02, 1e-9, 1e-8]}},
        searcher={"name": "grid"},
        budget={"trials": 3},
        scheduler={"name": "asha", "reduction_factor": 3},
    )
    assert [trial.status for trial in data.trials].count("stopped") >= 1
    for trial in data.trials:
        run = RunDirectory(data.folder / "trials" / trial.id / "g0")
        alone = RunDirectory(tmp_path / trial.id)
        alone.create(run.spec())
        run_local(run.spec(), alone)
        assert trial.step >= 1
        found = figures(run)
        assert found == figures(alone)[: len(found)]
        assert run.result.exists() == (trial.step == 6)
