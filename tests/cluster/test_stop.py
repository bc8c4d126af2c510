"""A driver that is asked to stop on Ray: its runs keep a checkpoint, and go on to equal figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.util import placement_group_table

from cirkd_ray.cluster import sweep as sweeps
from cirkd_ray.cluster.pool import Job, run_jobs
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.stopping import (
    StartNoStopped,
    ask_to_stop,
    has_workers,
    in_this_call,
    interruptible,
    one_call,
    stop_is_asked,
    this_call,
)
from cirkd_ray.cluster.sweep import Sweep, make_tuner
from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.sweep.folder import read_sweep
from cirkd_ray.train import stop
from cirkd_ray.train.checkpoint import last_step
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.train.stop import Stopped, stoppable
from tests.cluster.paced import paced_run
from tests.cluster.sweep_stubs import stub_plan, stub_run
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline

NOTEBOOK = """
import sys
import ray
ray.init(address="local", num_cpus=2, log_to_driver=False)
from cirkd_ray.cli import main
for words in ([], ["--resume"]):
    print("code", main([*sys.argv[1:], *words]), ray.is_initialized(), flush=True)
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture
def asking(ray_cluster: None) -> Iterator[None]:
    """A call of a test's own; takes back what it asks."""
    with one_call():
        yield
    stop._request.asked.clear()


@contextmanager
def anew() -> Iterator[None]:
    """The next call of the same process."""
    stop._request.asked.clear()
    with one_call():
        yield


def ask_when(condition: Any) -> None:
    """A signal to the driver, as soon as `condition()` holds."""

    def wait() -> None:
        end = time.monotonic() + 240
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        stop._request.asked.set()

    threading.Thread(target=wait, daemon=True).start()


def on_ray(spec: RunSpec, path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    fit(spec, directory)
    return directory


def test_a_stopped_run_is_resumed_to_the_same_figures(asking: None, tmp_path: Path) -> None:
    steps = {"steps": 60, "log_every": 5, "validate_every": 60, "checkpoint_every": 60}
    spec = tiny_baseline(cluster={"workers": 1}, train=steps)
    directory = RunDirectory(tmp_path / "run")
    ask_when(lambda: len(directory.read_metrics()) >= 1)
    with pytest.raises(Stopped, match="stopped at step") as stopped:
        on_ray(spec, directory.path)
    step = last_step(directory.checkpoints)
    assert str(stopped.value) == f"stopped at step {step}"
    assert 5 <= step < 60
    assert directory.read_result() is None
    with anew():
        assert figures(on_ray(spec, directory.path)) == figures(on_ray(spec, tmp_path / "whole"))


def stoppable_run(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> Any:
    """A stand-in for `fit` that obeys."""

    def before(step: int) -> None:
        time.sleep(0.3)
        if stop_is_asked():
            raise Stopped(f"stopped at step {step - 1}")

    return stub_run(spec, directory, callbacks, resume_from, before)


def test_a_comparisons_runs_stop_and_no_other_starts(asking: None, tmp_path: Path) -> None:
    specs = {name: tiny_baseline(name=name, train={"steps": 40, "validate_every": 1}) for name in "abc"}
    jobs = [Job(name, spec, tmp_path / name) for name, spec in specs.items()]
    said: list[str] = []
    ask_when(lambda: len(list(tmp_path.glob("*/metrics.jsonl"))) == 2)
    with pytest.raises(Stopped, match="stopped with 0 of 3 runs finished"):
        run_jobs(jobs, 2, said.append, stoppable_run)
    assert sorted(text.split(":")[0] for text in said) == ["a", "b"]
    assert all("stopped at step" in text for text in said)
    assert not (tmp_path / "c").exists()
    with anew():
        results = run_jobs(jobs, 3, said.append, stoppable_run)
    assert all(not isinstance(result, str) for result in results.values())
    assert [row["step"] for row in RunDirectory(tmp_path / "a").read_metrics()] == list(range(1, 41))


def test_a_sweep_stops_when_its_trials_have_and_goes_on(
    asking: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    plan, spec = stub_plan(folder, 12, budget={"trials": 3})
    monkeypatch.setattr(sweeps, "make_tuner", lambda *arguments: make_tuner(*arguments[:-1], stoppable_run))
    base = from_tree(plan.base)
    here = Sweep(spec, base, folder, tmp_path, print, DataGuard.of(base))
    ask_when(lambda: len(list(folder.glob("trials/*/g0/metrics.jsonl"))) == 2)
    with pytest.raises(Stopped, match="stopped with 0 of 3 trials ended"):
        sweeps._search(here, here.base, 2)
    begun = {trial.id: len(trial.rows) for trial in read_sweep(folder).trials}
    assert len(begun) >= 2
    assert sum(begun.values()) < 36
    with anew():
        sweeps._search(here, here.base, 2)
    trials = read_sweep(folder).trials
    assert [trial.status for trial in trials] == ["finished"] * 3
    assert all([row["step"] for row in trial.rows] == list(range(1, 13)) for trial in trials)


def test_a_signal_is_told_to_its_call_alone(asking: None) -> None:
    with stoppable(), ray_session():
        assert not stop_is_asked()
        stop._request.asked.set()
        end = time.monotonic() + 30
        while not stop_is_asked() and time.monotonic() < end:
            time.sleep(0.05)
        assert stop_is_asked()
        with ray_session():  # a stage of the same command that begins after the signal
            assert stop_is_asked()
    with ray_session():
        assert not stop_is_asked()


def test_what_a_notebooks_call_leaves_behind_is_stopped(ray_cluster: None) -> None:
    asked: list[Any] = []

    def interrupted() -> None:
        with ray_session():
            asked.append(in_this_call(stop_is_asked))
            assert not asked[0]()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert asked[0]()


def test_ctrl_c_reaches_the_workers_of_a_ray_that_the_notebook_started(tmp_path: Path) -> None:
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "log"
    steps = {"steps": 60, "log_every": 5, "validate_every": 60, "checkpoint_every": 60}
    recipe.write_text(tiny_baseline(cluster={"workers": 1}, train=steps).to_yaml())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    words = ["train", str(recipe), "--out", str(tmp_path), "--name", "run"]
    with log.open("w") as output:
        notebook = subprocess.Popen(
            [sys.executable, "-c", NOTEBOOK, *words],
            env={**environment, "PYTHONPATH": str(REPO)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    directory, end = RunDirectory(tmp_path / "run"), time.monotonic() + 300
    while not directory.read_metrics() and notebook.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    notebook.send_signal(signal.SIGINT)
    notebook.wait(timeout=600)
    said = log.read_text()
    assert [line for line in said.splitlines() if line.startswith("code")] == [
        "code 130 True",
        "code 0 True",
    ], said
    assert "stopped at step" in said
    assert "continuing at step" in (directory.path / "log.txt").read_text()


def test_a_run_that_waits_for_places_leaves_at_a_stop(asking: None, tmp_path: Path) -> None:
    spec = tiny_baseline(cluster={"workers": 1, "cpus_per_worker": 1000, "autoscaling": True})
    directory = RunDirectory(tmp_path / "run")
    ask_when(lambda: any(group["state"] == "PENDING" for group in placement_group_table().values()))
    with pytest.raises(Stopped, match="stopped before the first step"):
        on_ray(spec, directory.path)
    assert directory.read_result() is None


def test_no_workers_are_started_after_a_stop(
    asking: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes between the driver's own look and its controller's."""
    monkeypatch.setattr("cirkd_ray.cluster.train.interruptible", lambda act, busy: (ask_to_stop(), act()))
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped, match="stopped before the first step"):
        on_ray(tiny_baseline(cluster={"workers": 1}), directory.path)
    assert not (directory.path / "log.txt").exists()


def test_a_run_with_workers_is_not_left_behind(asking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cirkd_ray.cluster.stopping.PATIENCE", 0.0)
    ask_to_stop()
    with pytest.raises(Stopped, match="waited for the cluster"):
        interruptible(lambda: time.sleep(60))
    assert interruptible(lambda: time.sleep(2) or "done", lambda: True) == "done"
    with pytest.raises(LookupError):
        interruptible(lambda: {}["what it raises"])
    workers = StartNoStopped(this_call(), "/run")
    workers.after_worker_group_training_start(None)
    assert has_workers("/run")
    assert not has_workers("/another")
    workers.after_worker_group_shutdown(None)
    assert not has_workers("/run")


@pytest.mark.slow
def test_a_driver_that_gets_sigterm_leaves_a_checkpoint_and_its_line_resumes(
    ray_cluster: None, tmp_path: Path
) -> None:
    spec = paced_run(100, 100)
    recipe, log, directory = tmp_path / "recipe.yaml", tmp_path / "log", RunDirectory(tmp_path / "run")
    recipe.write_text(spec.to_yaml())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
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
    ]
    options: dict[str, Any] = {"env": {**environment, "PYTHONPATH": str(REPO)}, "stderr": subprocess.STDOUT}
    with log.open("w") as output:
        driver = subprocess.Popen(command, stdout=output, **options)
        end = time.monotonic() + 300
        while len(directory.read_metrics()) < 2 and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        driver.terminate()
        begun = time.monotonic()
        while last_step(directory.checkpoints) == 0 and driver.poll() is None:
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        assert driver.wait(timeout=300) == 143
    said = log.read_text()
    step = last_step(directory.checkpoints)
    print(f"step {step}: a checkpoint after {seconds:.1f} s, the end after {time.monotonic() - begun:.1f} s")
    assert 10 <= step < 100
    assert f"stopped at step {step}; continue with: cirkd train" in said
    assert (
        subprocess.run([*command, "--resume"], stdout=subprocess.DEVNULL, check=False, **options).returncode
        == 0
    )
    whole = figures(on_ray(spec, tmp_path / "whole"))
    assert [row["step"] for row in figures(directory)] == [row["step"] for row in whole]
    for ours, theirs in zip(figures(directory), whole, strict=True):
        assert {k: v for k, v in ours.items() if "/" in k} == {k: v for k, v in theirs.items() if "/" in k}
        assert ours.get("miou") == pytest.approx(theirs.get("miou"), abs=1e-3)  # BatchNorm: one more average
