"""Runs as Ray Train jobs: the same figures as without Ray, retries, and continuing what was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cirkd_ray.cluster.resources import check_nodes, plan_run
from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import ConfigError, DataError, TrainingError
from cirkd_ray.train.checkpoint import STATE, complaint
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.errors import refuses
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline, tiny_distillation, tiny_tree

pytestmark = pytest.mark.ray


def on_ray(spec: RunSpec, path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    fit(spec, directory)
    return directory


@pytest.fixture(scope="module")
def undisturbed(teacher: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    spec = tiny_distillation(
        teacher, train={"steps": 60, "validate_every": 30, "checkpoint_every": 10, "log_every": 10}
    )
    return on_ray(spec, tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_run_on_two_workers_leaves_a_whole_run_directory(undisturbed: RunDirectory) -> None:
    result = undisturbed.read_result()
    assert result is not None
    assert result["workers"] == 2
    assert result["steps"] == 60
    assert [row["step"] for row in undisturbed.read_metrics()] == [10, 20, 30, 40, 50, 60]
    kept = sorted(p.name for p in undisturbed.checkpoints.glob("step_*"))
    assert kept == ["step_00000050", "step_00000060"]
    assert (undisturbed.path / "student.safetensors").is_file()
    assert not list(undisturbed.checkpoints.glob(".*.partial"))
    assert list(undisturbed.tensorboard.iterdir())


def test_a_damaged_checkpoint_is_passed_over_and_written_under_a_new_name(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    directory.result.unlink()
    with (directory.checkpoints / "step_00000060" / STATE).open("r+b") as file:
        file.truncate(1000)
    assert figures(on_ray(undisturbed.spec(), directory.path)) == figures(undisturbed)
    assert complaint(directory.checkpoints / "step_00000060-again") is None


def kill_workers(directory: RunDirectory, rows: int, driver: int, count: int = 1) -> list[int]:
    """Kill workers of the Ray that `driver` started, when the run has so many lines of metrics: which."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if len(directory.read_metrics()) < rows:
            continue
        mine = {p.pid for p in psutil.Process(driver).children(recursive=True)}
        found = [process for process in _ray_train_workers() if process.pid in mine]
        if len(found) >= count:
            for process in found[:count]:
                process.send_signal(signal.SIGKILL)
            return [process.pid for process in found[:count]]
    return []


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_workers_cost_nothing_but_time(count: int, undisturbed: RunDirectory, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_workers, directory, 3, os.getpid(), count)
        on_ray(undisturbed.spec(), directory.path)
    assert len(killed.result()) == count
    log = (directory.path / "log.txt").read_text()
    told = re.search(r"worker \d on \S+ .*; restart 1 of 2 from (the checkpoint of step|the start)", log)
    assert told, log
    assert figures(directory) == figures(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_hangs_is_told_ended_and_the_run_goes_on(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "run")
    spec = undisturbed.spec()
    spec = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"hang_timeout": 20.0})})
    stopped: list[int] = []

    def stop_one_worker() -> None:
        while not stopped:
            time.sleep(0.02)
            mine = {p.pid for p in psutil.Process().children(recursive=True)}
            workers = [process for process in _ray_train_workers() if process.pid in mine]
            if workers and len(directory.read_metrics()) >= 3:
                workers[-1].send_signal(signal.SIGSTOP)
                stopped.append(workers[-1].pid)

    thread = threading.Thread(target=stop_one_worker, daemon=True)
    thread.start()
    on_ray(spec, directory.path)
    thread.join(timeout=5)
    assert stopped
    log = (directory.path / "log.txt").read_text()
    told = re.search(r"worker (\d) on \S+ has not .*; it is ended \(cluster\.hang_timeout=20\)", log)
    assert told, log
    assert f"worker {told[1]} on {socket.gethostname()} was hung and has been ended; restart 1 of 2" in log
    assert not psutil.pid_exists(stopped[0])
    assert figures(directory) == figures(undisturbed)


class HangAtTheStart(WorkerGroupCallback):  # type: ignore[misc]
    """Stops a worker's process as soon as it is placed, the first time."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        if not self.note.exists():
            self.note.write_text(str(workers[1].metadata.pid))
            os.kill(workers[1].metadata.pid, signal.SIGSTOP)
        return {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_hangs_before_it_begins_is_told_ended_and_the_run_goes_on(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    directory, note = RunDirectory(tmp_path / "run"), tmp_path / "stopped"
    spec = undisturbed.spec()
    spec = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"hang_timeout": 40.0})})
    open_directory(directory, spec, resume=True)
    fit(spec, directory, [HangAtTheStart(note)])
    log = (directory.path / "log.txt").read_text()
    assert re.search(
        r"worker \d on \S+ .*has not begun to train for .* s; its process gives no sign; it is ended", log
    )
    assert re.search(r"worker \d on \S+ was hung and has been ended; restart 1 of 2 from the start", log)
    assert not psutil.pid_exists(int(note.read_text()))
    assert figures(directory) == figures(undisturbed)


def _ray_train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.timeout(600)
def test_a_pair_goes_on_after_its_driver_and_then_a_worker_were_killed(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    """`cirkd train --resume` of a run that is trained together with its baseline."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(undisturbed.spec().model_copy(update={"baseline": True}).to_yaml())
    command = [
        sys.executable,
        "-m",
        "cirkd_ray",
        "train",
        str(recipe),
        "--out",
        str(tmp_path),
        "--name",
        "run",
        "--resume",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    environment.pop("RAY_ADDRESS", None)
    directory = RunDirectory(tmp_path / "run")
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 180
    while len(directory.read_metrics()) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    psutil.wait_procs(children, timeout=30)  # its Ray ends with it
    for child in children:
        if child.is_running():
            child.kill()
    assert directory.read_result() is None
    before = len(directory.read_metrics())
    assert 2 <= before < 6
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert kill_workers(directory, before + 1, driver.pid)
    assert driver.wait(timeout=300) == 0
    (alone,) = (RunDirectory(path.parent) for path in (tmp_path / "baselines").glob("*/run.yaml"))
    for run in (directory, alone):
        assert "continuing at step" in (run.path / "log.txt").read_text()
    assert "; restart 1 of 2 from the checkpoint of step" in (directory.path / "log.txt").read_text()
    found, steps = alone.read_result(), [row["step"] for row in alone.read_metrics()]
    assert found is not None
    assert steps == [10, 20, 30, 40, 50, 60]
    assert json.loads(directory.result.read_text())["baseline"]["last"] == found["last"]
    assert figures(directory) == figures(undisturbed)


def test_a_users_error_in_a_worker_is_not_retried_and_arrives_as_itself(
    ray_cluster: None, tmp_path: Path
) -> None:
    spec = tiny_baseline(optim={"lr": 1e30, "warmup_steps": 0})
    started = time.monotonic()
    with refuses("loss 'task'", TrainingError, "step"):
        on_ray(spec, tmp_path / "run")
    log = tmp_path / "run" / "log.txt"
    assert not log.exists() or "continuing" not in log.read_text()
    assert time.monotonic() - started < 120


def test_bad_data_found_by_one_rank_names_the_file(ray_cluster: None, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for index in range(6):
            for folder, image in (
                (split, np.zeros((40, 60, 3), np.uint8)),
                (f"{split}annot", np.zeros((40, 60), np.uint8)),
            ):
                (root / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / folder / f"{index}.png"), image)
    (root / "train" / "4.png").write_bytes(b"no image")
    tree = tiny_tree()
    tree["data"] = {"name": "camvid", "root": str(root), "crop": [32, 64]}
    with refuses(root / "train" / "4.png", DataError):
        on_ray(from_tree(tree), tmp_path / "run")


@pytest.mark.parametrize(
    ("cluster", "available", "subject", "facts"),
    [
        ({"workers": 3}, {"CPU": 8}, "train.batch_size", (4, "cluster.workers=3")),
        ({"workers": 4}, {"CPU": 2}, "cluster.workers", ("4 x 1 CPU", "2 CPU")),
        ({"device": "cuda"}, {"CPU": 8}, "cluster.device", ("cluster", "GPU")),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    cluster: dict[str, object], available: dict[str, float], subject: str, facts: tuple[object, ...]
) -> None:
    with refuses(subject, ConfigError, *facts):
        plan_run(tiny_baseline(cluster=cluster), available)


def test_a_worker_that_fits_no_node_is_refused() -> None:
    plan = plan_run(tiny_baseline(data={"workers": 5}), {"CPU": 16})
    check_nodes(plan, [{"CPU": 6}, {"CPU": 10}])
    with refuses("cluster.workers", ConfigError, "4 nodes", "room for 0"):
        check_nodes(plan, [{"CPU": 4}] * 4)


def test_plans_count_the_loaders_processes_and_the_gpus() -> None:
    spec = tiny_baseline(cluster={"workers": "auto", "device": "auto"}, data={"workers": 3})
    plan = plan_run(spec, {"CPU": 64, "GPU": 8})
    assert (plan.workers, plan.cpus, plan.gpus) == (4, 4.0, 1)  # 8 GPUs, but a batch of 4
    assert plan_run(spec, {"CPU": 8}).workers == 2
    assert plan_run(spec, {"CPU": 4}).per_worker() == {"CPU": 4.0}


def test_local_and_ray_give_the_same_run(ray_cluster: None, tmp_path: Path) -> None:
    spec = tiny_baseline(cluster={"workers": 1})
    here = RunDirectory(tmp_path / "here")
    here.create(spec)
    run_local(spec, here)
    assert figures(on_ray(spec, tmp_path / "there")) == figures(here)
