"""The scripts in `jobs/` against a private head with token authentication."""

from __future__ import annotations

import re
import subprocess
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


def submit(head: dict[str, str], out: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A script of `jobs/`, or `cirkd submit` with these options."""
    environment = {**head, "CIRKD_OUT": str(out), "CIRKD_ENV": "image", "PYTHONPATH": str(REPO)}
    script = (
        ["bash", str(REPO / "jobs" / command[0])]
        if command[0].endswith(".sh")
        else ["cirkd", "submit", command[0]]
    )
    return subprocess.run(
        [*script, *command[1:]],
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
        line = ("tune", str(space), "--name", "sweep", "--out", str(tmp_path))
        sent = submit(head, tmp_path, "--detach", "--dir", str(REPO), "--", *line)
        [job] = re.findall(r"job (\S+) is submitted", sent.stderr)
        first = pool.submit(submit, head, tmp_path, "--follow", job)
        end = time.monotonic() + 600
        while not first.done() and time.monotonic() < end:
            reports = [path.read_text().count('"miou"') for path in tmp_path.glob(METRICS)]
            if sum(reports) >= 3:
                break
            time.sleep(0.2)
        assert submit(head, tmp_path, "--stop", job).returncode == 0
        stopped = first.result()
        assert stopped.returncode == 143, stopped.stderr
        assert "continue with: cirkd tune" in stopped.stdout  # it was given the time to end by itself
    rows = [row for trial in read_sweep(tmp_path / "sweep").trials for row in trial.rows]
    assert 3 <= len(rows) < 36
    done = submit(head, tmp_path, "tune.sh", str(space), "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = read_sweep(tmp_path / "sweep").trials
    assert [trial.status for trial in trials] == ["finished"] * 3
    assert all([row["step"] for row in trial.rows] == list(range(10, 130, 10)) for trial in trials)


def test_a_job_that_fails_ends_with_its_own_exit_code(head: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "away.yaml"
    recipe.write_text(tiny_baseline(data={"name": "camvid", "root": "/nowhere"}).to_yaml())
    done = submit(head, tmp_path, "train.sh", str(recipe), "first")
    assert done.returncode == 2
    assert "/nowhere" in done.stdout
    assert "exit code 2" in done.stderr


def test_a_folder_of_ones_own_is_enough_and_no_token_is_refused(head: dict[str, str], tmp_path: Path) -> None:
    """The package comes along with a folder that holds a recipe alone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(tiny_baseline(cluster={"workers": 1}, train={"steps": 2}).to_yaml())
    line = ("--", "train", "tiny.yaml", "--name", "own", "--out", str(tmp_path / "runs"))
    untold = {name: value for name, value in head.items() if name != "RAY_AUTH_TOKEN"} | {"HOME": str(folder)}
    refused = submit(untold, tmp_path, "--dir", str(folder), *line)
    assert refused.returncode == 2
    assert "token" in refused.stderr
    done = submit(head, tmp_path, "--dir", str(folder), *line)
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunDirectory(tmp_path / "runs" / "own").read_result() is not None
