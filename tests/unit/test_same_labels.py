"""A network is not used where labels of its data set mean something else than when it was trained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cirkd_ray.cli import main
from cirkd_ray.config import TeacherSpec
from cirkd_ray.data import build_dataset
from cirkd_ray.data.identity import DATA, LISTING, DataIdentity
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.build import build_network
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.weights import save_model
from cirkd_ray.weights.card import run_of
from tests.errors import refuses
from tests.unit.test_data_prepare import convert, small_set
from tests.unit.test_same_data import bend, describe, look, own_data, rewrite


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


@pytest.mark.parametrize("place", ["model.json", "student.safetensors", "checkpoints/step_3/student.pt"])
def test_a_file_of_a_run_says_what_its_labels_meant(place: str, root: Path, tmp_path: Path) -> None:
    look(root).write(tmp_path / "run")
    weights = tmp_path / "run" / place
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.touch()
    teacher = TeacherSpec(weights=str(weights))
    taught = own_data(root).model_copy(update={"teacher": teacher})
    DataGuard.of(taught)
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    with refuses("teacher.weights", ConfigError, "label value 0 is y, was x", str(weights)):
        DataGuard.of(taught)
    moved = own_data(root.rename(tmp_path / "moved")).model_copy(update={"teacher": teacher})
    with refuses("teacher.weights", ConfigError, "label value 0 is y, was x"):
        DataGuard.of(moved)  # the same files in another place
    bend(tmp_path / "moved/labels/train/c.png")
    os.utime(tmp_path / "moved/images/train/c.png")
    DataGuard.of(moved)  # another set


def trained_model(root: Path, run: Path) -> Path:
    """A run's folder with a network that was never trained, and what its data are."""
    spec = own_data(root)
    RunDirectory(run).create(spec)
    model = build_network(spec.model, 2, "model")
    save_model(model, run, build_dataset("folder", split="val", root=root).classes)
    DataGuard.of(spec).now.write(run)
    return run


@pytest.mark.parametrize("place", ["", "model.json", "student.safetensors"])
@pytest.mark.parametrize("command", ["eval", "predict --split val", "predict --worst 1"])
def test_a_network_is_not_evaluated_on_labels_that_mean_something_else(
    place: str, command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_model(root, tmp_path / "run")
    name, *options = command.split()
    line = [name, str(run / place), *options, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(line) == 0
    assert "changed" not in capsys.readouterr().err
    rewrite(root)
    (root / "labels/val/d.png").touch()
    assert main(line) == 0
    assert "files of the data have changed since it was trained (labels/val/d.png" in capsys.readouterr().err
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    assert main(line) == 2
    told = capsys.readouterr().err
    assert all(part in told for part in ("label value 0 is y, was x", str(run), "--accept-data"))
    assert len(told.strip().splitlines()) == 2
    assert main([*line, "--accept-data"]) == 0
    assert "it is used all the same" in capsys.readouterr().err


def test_a_network_is_not_evaluated_on_a_prepared_set_of_other_labels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_model(root, tmp_path / "run")
    convert(root, tmp_path / "p")
    line = [
        "eval",
        str(run),
        "--root",
        str(tmp_path / "p"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(line) == 0
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    assert main(line) == 2
    assert "was prepared when labels meant something else" in capsys.readouterr().err
    assert main([*line, "--accept-data"]) == 0


def test_runs_of_a_comparison_and_a_sweep_know_their_data(root: Path, tmp_path: Path) -> None:
    now = look(root)
    now.write(tmp_path / "sweep")
    trial = tmp_path / "sweep/trials/x/model.json"
    assert DataIdentity.near(trial) is not None
    assert DataIdentity.near(tmp_path / "model.json") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "sweep")
        assert DataIdentity.near("trials/model.json") is not None
        assert DataIdentity.near("package://quickstart/teacher") is None
        (tmp_path / "sweep/run.yaml").touch()
        assert run_of("trials/model.json") == tmp_path / "sweep"
        assert run_of("package://quickstart/teacher") is None
    folder = tmp_path / "c/runs/kd-s0"
    guard = DataGuard.of(own_data(root))
    guard.mark(folder)
    assert (folder / DATA).is_file()
    assert not (folder / LISTING).exists()
    describe("classes: [y, x]")(root)
    DataGuard.of(own_data(root)).mark(folder)
    assert DataIdentity.near(folder).classes == ("x", "y")  # type: ignore[union-attr]
