"""A head that is killed with all its jobs: the same line, to another head, continues what was submitted."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.paced import paced_run
from tests.cluster.private_head import private_head
from tests.cluster.test_jobs_submit import submit
from tests.tinyrun import figures

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def kill_the_head() -> None:
    """At once and with all its processes, as a machine that is switched off."""
    (head,) = (p for p in psutil.Process(os.getpid()).children() if {"start", "--head"} <= {*p.cmdline()})
    family = [head, *head.children(recursive=True)]
    for process in family:
        process.kill()


def test_a_job_goes_on_under_another_head(ray_cluster: None, tmp_path: Path) -> None:
    from cirkd_ray.cluster.train import fit

    spec = paced_run(200, 10)
    recipe, whole, directory = (
        tmp_path / "tiny.yaml",
        RunDirectory(tmp_path / "w"),
        RunDirectory(tmp_path / "run"),
    )
    recipe.write_text(spec.to_yaml())
    open_directory(whole, spec, resume=True)
    fit(spec, whole)
    with private_head(cpus=2) as head, ThreadPoolExecutor(1) as pool:
        first = pool.submit(submit, head, tmp_path, "train.sh", str(recipe), "run")
        end = time.monotonic() + 600
        while len(directory.read_metrics()) < 4 and not first.done() and time.monotonic() < end:
            time.sleep(0.05)
        kill_the_head()
        assert first.result().returncode != 0
    step, begun = directory.read_metrics()[-1]["step"], time.monotonic()
    assert step < 200
    with private_head(cpus=2) as head:
        print(f"head lost at step {step}; the new one up after {time.monotonic() - begun:.0f} s")
        done = submit(head, tmp_path, "train.sh", str(recipe), "run")
        assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing at step" in (directory.path / "log.txt").read_text()
    assert figures(directory) == figures(whole)
