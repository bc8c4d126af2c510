"""Checkpoints that Ray Train hears of; needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train
import torch
from pyarrow import fs

from cirkd_ray.cluster.worker import RayReporter
from cirkd_ray.errors import CheckpointError
from cirkd_ray.train import snapshot
from cirkd_ray.train.checkpoint import STATE, complaint, list_checkpoints
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.snapshot import Snapshot
from tests.tinyrun import tiny_baseline


@pytest.fixture
def reporter(tmp_path: Path) -> RayReporter:
    directory = RunDirectory(tmp_path / "run")
    directory.create(tiny_baseline(train={"keep_checkpoints": 2}))
    return RayReporter(directory, directory.spec())


def upload(reporter: RayReporter, step: int) -> ray.train.Checkpoint:
    folder = reporter._begin(Snapshot({"step": step, "x": torch.ones(500)}))
    told = ray.train.Checkpoint.from_directory(str(folder))
    return reporter._written(reporter.writer.pending, told, folder.name)


def test_ray_hears_of_a_checkpoint_when_it_is_whole_and_the_newest_whole_ones_are_kept(
    reporter: RayReporter,
) -> None:
    for step in (1, 2, 3):
        found = upload(reporter, step)
        assert complaint(Path(found.path)) is None
        assert found.filesystem == fs.FileSystem.from_uri(str(reporter.kept))[0]  # as Ray Train asks for
    (reporter.kept / "step_00000003" / STATE).write_bytes(b"half")
    upload(reporter, 4)
    assert [path.name for path in list_checkpoints(reporter.kept)] == ["step_00000004", "step_00000002"]


def test_a_checkpoint_that_cannot_be_written_is_told_to_ray_and_leaves_nothing(
    reporter: RayReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(reporter, 1)

    def full(folder: Path, *rest: object) -> None:
        raise CheckpointError(f"{folder}: no space left")

    monkeypatch.setattr(snapshot, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match="no space left"):
        upload(reporter, 2)
    with pytest.raises(CheckpointError, match="no space left"):
        reporter.settle()
    reporter.settle()  # once
    assert [path.name for path in reporter.kept.iterdir()] == ["step_00000001"]
