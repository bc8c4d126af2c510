"""Damaged checkpoints: they are none of those that are kept, and a run does not start over in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.errors import CheckpointError
from cirkd_ray.train.checkpoint import (
    STATE,
    keep_newest,
    list_checkpoints,
    prune_checkpoints,
    write_checkpoint,
)
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import run_recipe
from tests.errors import refuses
from tests.tinyrun import figures, tiny_baseline
from tests.unit.test_engine_run import new_run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return new_run(tiny_baseline(), tmp_path_factory.mktemp("undisturbed") / "run")


def interrupted(undisturbed: RunDirectory, path: Path) -> RunDirectory:
    """A copy of the finished run without its result."""
    shutil.copytree(undisturbed.path, path)
    (path / "result.json").unlink()
    return RunDirectory(path)


def damage(checkpoint: Path) -> None:
    with (checkpoint / STATE).open("r+b") as file:
        file.truncate(1000)


def checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(folder / f"step_{step:08d}", {"step": step, "x": torch.ones(500)})


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


@pytest.mark.parametrize("keep", [keep_newest, prune_checkpoints])
def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(keep: Any, tmp_path: Path) -> None:
    checkpoints(tmp_path, 1, 2, 3, 4)
    damage(tmp_path / "step_00000004")
    keep(tmp_path, 2)
    assert names(tmp_path) == ["step_00000003", "step_00000002"]
    damage(tmp_path / "step_00000003")
    damage(tmp_path / "step_00000002")
    keep(tmp_path, 2)  # nothing good: what there is may still be of use
    assert names(tmp_path) == ["step_00000003", "step_00000002"]


def test_a_run_without_a_whole_checkpoint_does_not_start_over_unasked(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    spec, run = undisturbed.spec(), interrupted(undisturbed, tmp_path / "run")
    for path in list_checkpoints(run.checkpoints):
        damage(path)
    trained: list[Path] = []

    def runner(spec: Any, directory: RunDirectory) -> dict[str, Any]:
        trained.append(directory.path)
        return {}

    with refuses(run.checkpoints, CheckpointError) as error:
        run_recipe(spec, run, tmp_path, runner, resume=True)
    assert "--restart" in str(error.value)
    with refuses(run.checkpoints, CheckpointError):  # nor does the loop, which sweeps call by themselves
        new_run(spec, run.path)
    assert not trained
    assert names(run.checkpoints)
    run_recipe(spec, run, tmp_path, runner, resume=True, restart=True)
    assert trained
    assert figures(new_run(spec, run.path)) == figures(undisturbed)


def test_restart_keeps_a_run_that_has_a_whole_checkpoint(undisturbed: RunDirectory, tmp_path: Path) -> None:
    run = interrupted(undisturbed, tmp_path / "run")
    damage(list_checkpoints(run.checkpoints)[0])
    before = names(run.checkpoints)
    run_recipe(run.spec(), run, tmp_path, lambda spec, directory: {}, resume=True, restart=True)
    assert names(run.checkpoints) == before


def test_a_finished_run_needs_no_checkpoint(undisturbed: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    for path in list_checkpoints(run.checkpoints):
        damage(path)
    found = run_recipe(run.spec(), run, tmp_path, lambda spec, directory: {}, resume=True)
    assert found.result == run.read_result()
