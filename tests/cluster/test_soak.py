"""Random kills of workers and of trials' processes, for minutes: right results, and nothing that grows.

`CIRKD_SOAK` is how long, in seconds (180).
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors

from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec
from cirkd_ray.sweep.folder import read_sweep
from cirkd_ray.train.checkpoint import last_step
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import TEMPORARY
from tests.cluster.sweep_stubs import slow_run, stub_plan
from tests.tinyrun import figures, tiny_baseline

SECONDS = float(os.environ.get("CIRKD_SOAK", "180"))
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3 * SECONDS + 900)]


class Killer:
    """Kills a process of this driver's Ray at random times, after there was progress since the last kill.

    Args:
        name: of the processes.
        progress: grows as what they do gets on.
        chance: decides which, and when.
        most: kills.
    """

    def __init__(self, name: str, progress: Callable[[], int], chance: random.Random, most: int) -> None:
        self.name, self.progress, self.chance, self.most, self.count = name, progress, chance, most, 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._kill, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=30)

    def _kill(self, over: threading.Event) -> None:
        before = 0
        while self.count < self.most and not over.wait(0.2):
            if self.progress() <= before:
                continue
            if over.wait(self.chance.uniform(0.0, 4.0)):
                return
            victims = [p for p in sorted(_children(), key=lambda p: p.pid) if self.name in _title(p)]
            if victims:
                with suppress(psutil.Error):
                    self.chance.choice(victims).send_signal(signal.SIGKILL)
                    self.count, before = self.count + 1, self.progress()


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def a_run(path: Path, chance: random.Random, whole: RunDirectory) -> int:
    directory = RunDirectory(path)
    spec: RunSpec = whole.spec()
    open_directory(directory, spec, resume=True)
    killer = Killer("RayTrainWorker", lambda: last_step(directory.checkpoints), chance, 4)
    with killer():
        fit(spec, directory)
    assert figures(directory) == figures(whole)
    return killer.count


def a_sweep(path: Path, chance: random.Random, whole: RunDirectory) -> int:
    plan, sweep = stub_plan(path, 8, budget={"trials": 2})

    def reports() -> int:
        return sum(len(trial.rows) for trial in read_sweep(path).trials) if path.exists() else 0

    killer = Killer("ImplicitFunc", reports, chance, 2)  # a trial is tried three times
    with killer():
        make_tuner(plan, sweep, 8, 1, 2, slow_run).fit()
    trials = read_sweep(path).trials
    assert [trial.status for trial in trials] == ["finished"] * 2
    assert all([row["step"] for row in trial.rows] == list(range(1, 9)) for trial in trials)
    return killer.count


def in_use() -> float:
    """CPUs that something holds."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return float(total["CPU"] - free.get("CPU", 0.0))


def holds_files(path: Path) -> bool:
    """Whether a temporary file or folder takes space: wandb, which timm imports where it is installed, makes
    empty folders in each process, and a process that is killed leaves them."""
    return path.is_file() or any(found.is_file() for found in path.rglob("*"))


def footprint() -> dict[str, float]:
    """What may not grow: memory and files of this process, and what it holds of Ray."""
    gc.collect()
    end = time.monotonic() + 60
    while time.monotonic() < end and (in_use() or any("RayTrainWorker" in _title(p) for p in _children())):
        time.sleep(0.5)
    me, address = psutil.Process(), ray.get_runtime_context().gcs_address
    head = [p for p in _children() if "gcs_server" in _title(p) or "raylet/raylet" in _title(p)]
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    return {
        "MiB": me.memory_info().rss / 2**20,
        "MiB of the head": sum(p.memory_info().rss / 2**20 for p in head),
        "open files": me.num_fds(),
        "threads": me.num_threads(),
        "actors": len(list_actors(address, filters=[("state", "!=", "DEAD")], limit=10_000)),
        "placement groups": len(groups),
        "temporary files": sum(holds_files(path) for folder in TEMPORARY for path in Path(folder).iterdir()),
        "CPUs in use": in_use(),
    }


ROOM = {"MiB": 100.0, "MiB of the head": 200.0, "open files": 30, "threads": 20, "actors": 2}
"""By how much it may be more than after the first of each kind."""


def test_random_kills_end_with_the_right_results_and_nothing_grows(ray_cluster: None, tmp_path: Path) -> None:
    train = {"steps": 40, "log_every": 5, "validate_every": 20, "checkpoint_every": 5}
    whole = RunDirectory(tmp_path / "whole")
    spec = tiny_baseline(train=train, cluster={"workers": 2, "max_failures": 100})
    open_directory(whole, spec, resume=True)
    fit(spec, whole)
    chance, kinds = random.Random(14), (a_run, a_sweep)
    kills: dict[str, int] = {kind.__name__: 0 for kind in kinds}
    seen: list[dict[str, Any]] = []
    begun = time.monotonic()
    while time.monotonic() - begun < SECONDS or len(seen) < 3:
        kind = kinds[len(seen)] if len(seen) < 2 else chance.choice(kinds)
        kills[kind.__name__] += kind(tmp_path / str(len(seen)), chance, whole)
        seen.append({"kind": kind.__name__, "at": round(time.monotonic() - begun), **footprint()})
        print(seen[-1], kills, flush=True)
    assert all(kills.values())
    first, last = seen[1], seen[-1]
    for name, value in first.items():
        if isinstance(value, float | int) and name != "at":
            assert last[name] <= value + ROOM.get(name, 0), (name, seen)
