"""Folders of runs that were moved or copied: they go on where they lie now, and leave the original alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cirkd_ray.cluster.bridge import Pointer
from cirkd_ray.cluster.trial import TrialPlan, prepare
from cirkd_ray.compare.plan import open_comparison
from cirkd_ray.config import RunSpec, from_tree, load_run
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory, movable_tree, moved_spec
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.train.teacher import teacher_directory, teacher_of
from tests.errors import refuses
from tests.tinyrun import tiny_baseline

TRAINS = "teacher.train=quickstart/teacher"
SPACE = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.1]}}}


def taught(weights: Path) -> RunSpec:
    tree = load_run("quickstart").to_dict()
    return from_tree({**tree, "teacher": {"weights": str(weights)}})


def weights_of(spec: RunSpec) -> str:
    assert spec.teacher is not None
    return str(spec.teacher.weights)


@pytest.mark.parametrize("run", ["x", "sweep/trials/t/g0", "comparison/runs/kd-s0"])
@pytest.mark.parametrize("teacher", ["teachers/t", "big", "big/student.safetensors"])
def test_a_runs_teacher_is_the_one_beside_it(tmp_path: Path, run: str, teacher: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    directory = RunDirectory(old / run)
    (old / teacher).mkdir(parents=True)
    open_directory(directory, taught(old / teacher), resume=False)
    directory.metrics.touch()  # it has begun
    assert str(tmp_path) not in str(read_yaml(directory.recipe)["teacher"])
    assert weights_of(directory.spec()) == str(old / teacher)
    shutil.copytree(old, new)
    copied = RunDirectory(new / run)
    assert weights_of(copied.spec()) == str(new / teacher)
    open_directory(copied, taught(new / teacher), resume=True)
    with refuses(copied.path):
        open_directory(copied, taught(old / teacher), resume=True)


def test_a_run_that_was_moved_alone_finds_its_teacher_where_that_stayed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "old/x")
    (tmp_path / "old/teachers/t").mkdir(parents=True)
    open_directory(directory, taught(tmp_path / "old/teachers/t"), resume=False)
    directory.path.rename(tmp_path / "elsewhere")
    assert weights_of(RunDirectory(tmp_path / "elsewhere").spec()) == str(tmp_path / "old/teachers/t")


def test_a_teacher_from_elsewhere_keeps_its_place(tmp_path: Path) -> None:
    spec = taught(Path("/models/teacher"))
    tree = movable_tree(spec, tmp_path / "out/x")
    assert tree["teacher"] == spec.to_dict()["teacher"]
    assert moved_spec(tree, tmp_path / "moved/x") == spec


def test_the_teacher_of_a_moved_sweep_is_known_by_its_name(tmp_path: Path) -> None:
    spec, anew = load_run("quickstart", [TRAINS]), "give it another --name"
    data = DataGuard.of(spec)
    old = teacher_of(spec, tmp_path / "old/s", tmp_path / "old", data, anew).path
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    folder = tmp_path / "new/s"
    assert teacher_of(spec, folder, tmp_path / "new", data, anew).path == tmp_path / "new/teachers" / old.name
    (folder / "teacher.txt").write_text(str(old))  # as earlier versions wrote it
    assert teacher_of(spec, folder, tmp_path / "new", data, anew).path == tmp_path / "new/teachers" / old.name
    other = load_run("quickstart", [TRAINS, "teacher.set=[train.steps=3]"])
    with refuses(folder):
        teacher_of(other, folder, tmp_path / "new", data, anew)
    assert teacher_directory(other, tmp_path, data).path.name != old.name


def test_a_comparison_that_was_moved_with_its_teacher_goes_on(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    open_comparison({"kd": taught(old / "big")}, old / "c")
    (old / "c/runs/kd-s0").mkdir(parents=True)
    (old / "c/runs/kd-s0/metrics.jsonl").touch()  # it has begun
    shutil.copytree(old, new)
    open_comparison({"kd": taught(new / "big")}, new / "c")
    with refuses(new / "c"):
        open_comparison({"kd": taught(tmp_path / "other/big")}, new / "c")


def test_a_trial_of_a_copied_population_takes_its_donors_copy(tmp_path: Path) -> None:
    def begin(out: Path, pointer: Pointer | None) -> Path | None:
        plan = TrialPlan(
            str(out),
            SweepSpec.model_validate(SPACE).model_dump(mode="json"),
            tiny_baseline().to_dict(),
        )
        return prepare(plan, out / "trials/heir", {"optim.lr": 0.05}, pointer)[2]

    old, new, donor = tmp_path / "old", tmp_path / "new", "donor/g0/checkpoints/step_00000002"
    for path in (donor, str(old / "trials" / donor)):  # as now, and as earlier versions pointed
        assert begin(old, Pointer("donor", path, 2)) == old / "trials" / donor
        shutil.copytree(old, new)
        about = json.loads((new / "trials/heir/g0/trial.json").read_text())
        assert about["parent"]["path"] == path
        assert begin(new, Pointer("donor", path, 2)) == begin(new, None) == new / "trials" / donor
        for out in (old, new):
            shutil.rmtree(out)
