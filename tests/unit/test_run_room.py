"""A run that does not fit the disk is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import size_text
from cirkd_ray.train import disk
from cirkd_ray.train.disk import OTHER_FILES, require_room
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import run_recipe
from tests.errors import refuses
from tests.tinyrun import tiny_baseline


def started(spec: RunSpec, path: Path) -> bool:
    class Started(Exception):
        pass

    def runner(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
        raise Started

    try:
        run_recipe(spec, RunDirectory(path), path.parent, runner)
    except Started:
        return True
    return False


def test_a_full_disk_is_told_before_the_run_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 14_000_000)
    with refuses("cluster.disk", ConfigError, "14 MB are free", "3 checkpoints", "cluster.disk=ignore"):
        started(tiny_baseline(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert started(tiny_baseline(cluster={"disk": "ignore"}), tmp_path / "run")


def test_what_fits_to_the_byte_is_taken_and_checkpoints_that_are_there_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, each = tiny_baseline(train={"keep_checkpoints": 2}), 1_000_000
    free = 3 * each + OTHER_FILES
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    require_room(spec, each, tmp_path)
    free -= 1
    with refuses("cluster.disk", ConfigError):
        require_room(spec, each, tmp_path)
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000002" / "state.pt").write_bytes(b"x")
    require_room(spec, each, tmp_path)


def test_sizes_are_read_easily() -> None:
    assert [size_text(n) for n in (999, 14_000_000, 2.5e12)] == ["999 B", "14 MB", "2.5 TB"]
