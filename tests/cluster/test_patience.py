"""Storage that is away while a run trains on Ray: no restart is spent on it; the driver says what to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import StorageError
from cirkd_ray.train.checkpoint import complaint
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.errors import refuses
from tests.tinyrun import figures
from tests.unit.test_patience import make_root, with_cluster

pytestmark = pytest.mark.ray


def on_ray(spec: RunSpec, directory: RunDirectory) -> RunDirectory:
    open_directory(directory, spec, resume=True)
    fit(spec, directory)
    return directory


def long_run(root: Path) -> RunSpec:
    """On two workers, long enough for a look at it."""
    spec = with_cluster(make_root(root), hang_timeout=3.0)
    every = {"steps": 40, "log_every": 4, "checkpoint_every": 8, "validate_every": 40}
    return spec.model_copy(update={"train": spec.train.model_copy(update=every)})


def when(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 240
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_data_that_are_away_are_waited_for_by_all_and_missed_without_a_restart(
    ray_cluster: None, tmp_path: Path
) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    spec = long_run(root)
    whole = on_ray(spec, RunDirectory(tmp_path / "undisturbed"))
    directory = RunDirectory(tmp_path / "run")
    log = directory.path / "log.txt"
    first = when(lambda: len(directory.read_metrics()) >= 3, lambda: root.rename(away))
    with refuses("data.root", StorageError, root, "--resume") as error:
        on_ray(with_cluster(spec, storage_timeout=1.0), directory)
    first.join()
    said = log.read_text()
    assert "restart" not in said
    assert said.count("continuing at step") == 0
    checkpoint = Path(str(error.value).partition("checkpoint is ")[2].partition(";")[0])
    assert complaint(checkpoint) is None
    assert not directory.result.exists()

    def back() -> None:
        time.sleep(4)  # longer than `hang_timeout`: nobody hangs
        away.rename(root)

    away.rename(root)
    begun = log.read_text().count("\n")
    lines = len(directory.read_metrics())
    second = when(lambda: len(directory.read_metrics()) > lines, lambda: root.rename(away))
    third = when(lambda: "waiting for it" in "".join(log.read_text().splitlines()[begun:]), back)
    on_ray(spec, directory)
    second.join()
    third.join()
    said = "\n".join(log.read_text().splitlines()[begun:])
    assert "data.root: goes on after" in said
    assert "it is ended" not in said
    assert "restart" not in said
    assert figures(directory) == figures(whole)
