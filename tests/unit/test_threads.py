"""How many threads a process takes, and that the stages of one command share one Ray."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.cluster import train
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.device import share_cores
from cirkd_ray.train.rundir import RunDirectory
from tests.tinyrun import tiny_baseline


@pytest.mark.parametrize(
    ("set_before", "processes", "loaders", "threads"),
    [(None, 1, 0, 8), (None, 2, 0, 4), (None, 2, 3, 1), (None, 16, 0, 1), (None, 1, 2, 6), ("3", 2, 1, 12)],
)
def test_threads_are_a_processs_share_of_the_cores(
    set_before: str | None, processes: int, loaders: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [12]
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    for _ in range(2):  # a command's stages, one after the other
        share_cores(processes, loaders)
        assert found[-1] == threads


def test_waiting_threads_leave_their_core_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert main(["recipes", "list"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["recipes", "list"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_ray_worker_leaves_its_loaders_their_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, directory = tiny_baseline(data={"workers": 2}), RunDirectory(tmp_path / "run")
    launch = train.Launch([(spec, directory, None)], directory)

    def threads(cpus: float) -> object:
        trainer = train.make_trainer(launch, Plan(1, cpus, 0))
        return trainer.train_loop_config["threads"]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (threads(3.0), threads(6.0), threads(1.0)) == (1, 4, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads(6.0) is None
