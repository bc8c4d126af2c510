"""Sweeps that lose their driver or a trial's process go on where they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.tune.error import TuneError

from cirkd_ray.cluster import search
from cirkd_ray.cluster import sweep as sweeps
from cirkd_ray.cluster.decisions import LastingScheduler
from cirkd_ray.cluster.scheduler_state import read_records
from cirkd_ray.cluster.sweep import Sweep, make_tuner
from cirkd_ray.config import from_tree
from cirkd_ray.sweep.folder import read_sweep
from cirkd_ray.train.same_data import DataGuard
from tests.cluster.sweep_stubs import slow_run, stub_plan, stub_run
from tests.paths import REPO

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
DRIVER = """
import sys
from pathlib import Path
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.sweep import make_tuner
from tests.cluster.sweep_stubs import slow_run, stub_plan
plan, sweep = stub_plan(Path(sys.argv[1]), 6, budget={"trials": 3}, searcher={"name": "tpe"})
with ray_session(minimum_cpus=4):
    make_tuner(plan, sweep, 6, 1, 2, slow_run).fit()
"""


def steps_of(folder: Path) -> dict[str, list[int]]:
    return {trial.id: [row["step"] for row in trial.rows] for trial in read_sweep(folder).trials}


@pytest.mark.slow
def test_a_killed_driver_goes_on_by_the_same_call(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", DRIVER, str(folder)]
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 400
    while not list(folder.glob("trials/*/outcome.json")) and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    for child in psutil.wait_procs(children, timeout=30)[1]:
        child.kill()
    ended = {path.parent.name for path in folder.glob("trials/*/outcome.json")}
    assert 1 <= len(ended) < 3
    kept = {name: steps for name, steps in steps_of(folder).items() if name in ended}
    subprocess.run(command, env=environment, check=True, timeout=700, stdout=subprocess.DEVNULL)
    after = steps_of(folder)
    assert {name: after[name] for name in kept} == kept  # not run again
    assert [trial.status for trial in read_sweep(folder).trials] == ["finished"] * 3
    assert all(steps == [1, 2, 3, 4, 5, 6] for steps in after.values())  # and the others not from the start


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    plan, sweep = stub_plan(folder, 6, budget={"trials": 1})
    killed: list[int] = []

    def kill_the_trial() -> None:
        while not killed:
            time.sleep(0.1)
            if not any(len(steps) >= 2 for steps in steps_of(folder).values()):
                continue
            for process in psutil.Process().children(recursive=True):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)

    thread = threading.Thread(target=kill_the_trial, daemon=True)
    thread.start()
    make_tuner(plan, sweep, 6, 1, 1, slow_run).fit()
    thread.join(timeout=5)
    assert killed
    (trial,) = read_sweep(folder).trials
    assert trial.status == "finished"
    assert [row["step"] for row in trial.rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_hours_end_a_search_and_what_comes_after_is_not_held_up(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    plan, spec = stub_plan(folder, 40, budget={"trials": 6, "hours": 20 / 3600})
    monkeypatch.setattr(sweeps, "make_tuner", lambda *arguments: make_tuner(*arguments[:-1], slow_run))
    base = from_tree(plan.base)
    here = Sweep(spec, base, folder, tmp_path, print, DataGuard.of(base))
    for _ in range(2):  # the second finds the search over
        sweeps._search(here, here.base, 2)
        trials = read_sweep(folder).trials
        assert 1 <= len(trials) < 6
        assert {trial.status for trial in trials} == {"expired"}
        (folder / "trials" / trials[0].id / "outcome.json").unlink()  # as if killed before it was written


@pytest.mark.parametrize(
    "scheduler",
    ["asha", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hyperband", "median", "pbt"))],
)
def test_an_interrupted_sweep_stops_the_same_trials(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """Best trial first, one at a time: where the rungs are forgotten, a bad one is the best so far."""
    trials = 3 if scheduler == "asha" else 5
    space: dict[str, Any] = {
        "budget": {"trials": trials},
        "parameters": {"optim.lr": {"grid": [0.01 + 0.1 * n for n in range(trials)]}},
        "searcher": {"name": "grid"},
        "scheduler": {"name": scheduler, "reduction_factor": 2},
    }
    if scheduler == "pbt":
        space |= {"searcher": {"name": "random"}, "parameters": {"optim.lr": {"uniform": [0.001, 0.9]}}}
    monkeypatch.setattr(search, "_grid", lambda sweep: sweep.grid_points()[: sweep.trials])

    def decided(folder: Path, kill_after: int = 0) -> list[Any]:
        plan, sweep = stub_plan(folder, 4, **space)
        told = LastingScheduler.on_trial_result
        heard: list[str] = []

        def killed(self: LastingScheduler, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            heard.append(trial.trial_id)
            decision = told(self, controller, trial, result)
            if len(heard) == kill_after:  # decided, and neither carried out nor known to Tune's own state
                raise RuntimeError
            return decision

        for call in ("on_trial_result", None) if kill_after else (None,):
            with monkeypatch.context() as patch, nullcontext() if call is None else pytest.raises(TuneError):
                if call is not None:
                    patch.setattr(LastingScheduler, call, killed)
                make_tuner(plan, sweep, 4, 1, 1, stub_run).fit()
        records, _ = read_records(folder)
        ends = sorted(records.values(), key=lambda record: record.number)
        return [(record.decision, record.seen, record.ended, record.result["miou"]) for record in ends]

    undisturbed = decided(tmp_path / "whole")
    assert decided(tmp_path / "cut", kill_after=5) == undisturbed
    assert {trial.status for trial in read_sweep(tmp_path / "cut").trials} <= {"finished", "stopped"}
    if scheduler == "asha":
        assert [decision for decision, *_ in undisturbed] == ["CONTINUE", "STOP", "STOP"]
