"""The scripts in `jobs/` against a private head with token authentication."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cirkd_ray.sweep.folder import read_sweep
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.private_head import private_head
from tests.paths import REPO
from tests.tinyrun import tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with private_head(cpus=2) as environment:
        yield environment


METRICS = "sweep/trials/*/g0/metrics.jsonl"


def jobs(head: dict[str, str], *arguments: str) -> str:
    """`ray job ARGUMENTS` against the head."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments]
    environment = {**head, "RAY_AUTH_MODE": "token"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def submit(head: dict[str, str], out: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**head, "CIRKD_OUT": str(out), "CIRKD_ENV": "image", "CIRKD_PYTHON": sys.executable}
    environment["PYTHONPATH"] = ""
    return subprocess.run(
        ["bash", str(REPO / "jobs" / command[0]), *command[1:]],
        env=environment,
        cwd=out,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_a_training_job_and_a_sweep_finish_and_are_read_from_outside(
    head: dict[str, str], tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        tiny_baseline(cluster={"workers": 2}, train={"steps": 4, "validate_every": 2}).to_yaml()
    )
    done = submit(head, tmp_path, "train.sh", str(recipe), "first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 4/4" in done.stdout  # the job's log is followed
    result = RunDirectory(tmp_path / "first").read_result()
    assert result is not None
    assert result["workers"] == 2
    space = tmp_path / "space.yaml"
    space.write_text(
        f"recipe: {recipe}\nparameters: {{optim.lr: {{grid: [0.01, 0.02]}}}}\nsearcher: {{name: grid}}\n"
        "budget: {steps: 4, report_every: 2}\nresources: {workers: 1}\n"
    )
    done = submit(head, tmp_path, "tune.sh", str(space), "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    data = read_sweep(tmp_path / "sweep")
    assert [trial.status for trial in data.trials] == ["finished"] * 2
    assert (tmp_path / "sweep" / "best.yaml").is_file()
    before = {path: path.stat().st_mtime for path in tmp_path.glob("sweep/trials/*/g0/result.json")}
    done = submit(head, tmp_path, "tune.sh", str(space), "sweep")  # again: nothing is run twice
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime for path in before} == before


def test_an_interrupted_sweep_is_finished_by_submitting_it_again(
    head: dict[str, str], tmp_path: Path
) -> None:
    recipe, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    recipe.write_text(tiny_baseline(cluster={"workers": 1}).to_yaml())
    space.write_text(
        f"recipe: {recipe}\nparameters: {{optim.lr: {{grid: [0.01, 0.02, 0.03]}}}}\n"
        "searcher: {name: grid}\nbudget: {steps: 120, report_every: 10}\nresources: {workers: 1}\n"
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(submit, head, tmp_path, "tune.sh", str(space), "sweep")
        end = time.monotonic() + 600
        while not first.done() and time.monotonic() < end:
            reports = [path.read_text().count('"miou"') for path in tmp_path.glob(METRICS)]
            if sum(reports) >= 3:
                break
            time.sleep(0.2)
        for job in jobs(head, "list").split("submission_id='")[1:]:
            jobs(head, "stop", job.split("'")[0])
        assert first.result().returncode != 0
    rows = [row for trial in read_sweep(tmp_path / "sweep").trials for row in trial.rows]
    assert 3 <= len(rows) < 36
    done = submit(head, tmp_path, "tune.sh", str(space), "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = read_sweep(tmp_path / "sweep").trials
    assert [trial.status for trial in trials] == ["finished"] * 3
    assert all([row["step"] for row in trial.rows] == list(range(10, 130, 10)) for trial in trials)


def test_a_users_error_ends_with_its_own_exit_code(head: dict[str, str], tmp_path: Path) -> None:
    done = submit(head, tmp_path, "train.sh", "quikstart", "first")
    assert done.returncode == 2
    assert "did you mean 'quickstart'?" in done.stdout
    assert "exit code 2" in done.stderr
