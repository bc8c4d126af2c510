"""A driver that is asked to stop on Ray: its runs keep a checkpoint, and go on to equal figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster import sweep as sweeps
from cirkd_ray.cluster.pool import Job, run_jobs
from cirkd_ray.cluster.stopping import ask_to_stop, forget_stop, stop_is_asked
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
from tests.cluster.sweep_stubs import stub_plan, stub_run
from tests.tinyrun import figures, tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture
def asking(ray_cluster: None) -> Iterator[None]:
    """Takes back what a test asks."""
    yield
    forget_stop()
    stop._request.asked.clear()


def ask_when(condition: Any) -> None:
    """As the driver's signal and its session do, as soon as `condition()` holds."""

    def wait() -> None:
        end = time.monotonic() + 240
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        stop._request.asked.set()
        ask_to_stop()

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
    forget_stop()
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
    stop._request.asked.clear()
    forget_stop()
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
    stop._request.asked.clear()
    forget_stop()
    sweeps._search(here, here.base, 2)
    trials = read_sweep(folder).trials
    assert [trial.status for trial in trials] == ["finished"] * 3
    assert all([row["step"] for row in trial.rows] == list(range(1, 13)) for trial in trials)


def test_a_signal_is_told_to_the_job(asking: None) -> None:
    with stoppable(), stop.forwarded(ask_to_stop):
        assert not stop_is_asked()
        stop._request.asked.set()
        end = time.monotonic() + 30
        while not stop_is_asked() and time.monotonic() < end:
            time.sleep(0.05)
        assert stop_is_asked()
