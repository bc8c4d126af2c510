"""Files of a sweep or a comparison itself are waited for on a full disk, as those of its runs are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray import files
from cirkd_ray.cluster import stopping
from cirkd_ray.cluster.pool import _run
from cirkd_ray.cluster.trial import TrialPlan, prepare
from cirkd_ray.compare.plan import open_comparison
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import StorageError
from cirkd_ray.sweep.folder import write_expired
from cirkd_ray.train.outcome import read_outcome, write_outcome
from cirkd_ray.train.patience import patient_writes
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Interrupted
from cirkd_ray.train.validation import shared_scores
from tests.errors import refuses
from tests.tinyrun import tiny_baseline


@pytest.fixture
def each_fails_once(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The first writing of each file finds its disk full."""
    failed: set[str] = set()
    real = files._flush

    def flush(path: Path) -> None:
        name = path.name.split(".")[1]
        if name not in failed:
            failed.add(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr("cirkd_ray.train.patience.SLICE", 0.01)
    monkeypatch.setattr(files, "_flush", flush)
    return failed


def start_comparison(folder: Path) -> None:
    open_comparison({"baseline": tiny_baseline()}, folder)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda folder: write_outcome(folder, status="finished"), "outcome"),
        (write_expired, "outcome"),
        (shared_scores, "teacher"),
        (start_comparison, "comparison"),
    ],
)
def test_a_full_disk_is_waited_for(
    write: Callable[[Path], None], name: str, tmp_path: Path, each_fails_once: set[str]
) -> None:
    said: list[str] = []
    with patient_writes(tmp_path, 60, said.append):
        write(tmp_path)
    assert name in each_fails_once
    assert len(said) == 2
    assert said[0].startswith(f"WARNING: {tmp_path}: cannot be written (No space left on device")
    assert "goes on after" in said[1]
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob(".*.partial"))


def test_it_ends_with_what_to_do_and_elsewhere_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_outcome(tmp_path, status="running")
    monkeypatch.setattr(files, "_flush", full)
    with (
        refuses(tmp_path, StorageError, "No space left on device", "the same command goes on"),
        patient_writes(tmp_path, 0.3, lambda text: None),
    ):
        write_outcome(tmp_path, status="finished")
    assert read_outcome(tmp_path)["status"] == "running"
    with pytest.raises(Interrupted), patient_writes(tmp_path, 60, lambda text: None, lambda: True):
        write_outcome(tmp_path, status="finished")
    with pytest.raises(OSError, match="No space left"):
        write_outcome(tmp_path, status="finished")


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "stop_is_asked", lambda: False)


def test_a_trial_waits_as_it_begins(tmp_path: Path, each_fails_once: set[str], unasked: None) -> None:
    space = {"name": "s", "recipe": "quickstart", "parameters": {"optim.lr": {"grid": [0.1]}}}
    space |= {"searcher": {"name": "grid"}, "budget": {"steps": 6, "report_every": 3}}
    plan = TrialPlan(str(tmp_path), space, tiny_baseline().to_dict())
    _, directory, _ = prepare(plan, tmp_path / "trials" / "t", {"optim.lr": 0.1}, None)
    assert {"run", "trial"} <= each_fails_once
    assert directory.recipe.is_file()


def test_a_run_of_a_comparison_waits_as_it_begins(
    tmp_path: Path, each_fails_once: set[str], unasked: None
) -> None:
    trained: list[Path] = []

    def train(spec: RunSpec, directory: RunDirectory, *rest: Any) -> dict[str, Any]:
        trained.append(directory.path)
        return {}

    assert _run("", [("a", tiny_baseline().to_dict(), str(tmp_path / "a"))], train, None, None) == {"a": {}}
    assert trained == [tmp_path / "a"]
    assert "run" in each_fails_once
