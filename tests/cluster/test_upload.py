"""Checkpoints on their way to the run's directory; needs no cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from pyarrow import fs

from cirkd_ray.cluster.worker import RayReporter
from cirkd_ray.train.checkpoint import STATE, complaint, list_checkpoints, write_checkpoint
from cirkd_ray.train.rundir import RunDirectory
from tests.tinyrun import tiny_baseline


@pytest.fixture
def reporter(tmp_path: Path) -> RayReporter:
    directory = RunDirectory(tmp_path / "run")
    directory.create(tiny_baseline(train={"keep_checkpoints": 2}))
    return RayReporter(directory, directory.spec())


def upload(reporter: RayReporter, step: int) -> ray.train.Checkpoint:
    name = f"step_{step:08d}"
    local = write_checkpoint(reporter.local / name, {"step": step, "x": torch.ones(500)})
    try:
        return reporter._upload(SimpleNamespace(path=str(local)), name)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(reporter.local)


def test_the_newest_whole_checkpoints_are_kept(reporter: RayReporter) -> None:
    for step in (1, 2, 3):
        found = upload(reporter, step)
        assert complaint(Path(found.path)) is None
        assert found.filesystem == fs.FileSystem.from_uri(str(reporter.kept))[0]  # as Ray Train asks for
    (reporter.kept / "step_00000003" / STATE).write_bytes(b"half")
    upload(reporter, 4)
    assert [path.name for path in list_checkpoints(reporter.kept)] == ["step_00000004", "step_00000002"]


def test_an_upload_that_fails_leaves_no_half_of_a_checkpoint(
    reporter: RayReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def full(source: Any, target: Any) -> None:
        real(source, target)
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    upload(reporter, 1)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        upload(reporter, 2)
    assert [path.name for path in reporter.kept.iterdir()] == ["step_00000001"]
