"""The scripts in `jobs/` against a private head with token authentication."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cirkd_ray.engine.rundir import RunDirectory
from cirkd_ray.report.sweep_data import read_sweep
from tests.cluster.private_head import private_head
from tests.paths import REPO
from tests.tinyrun import tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    with private_head(cpus=2) as environment:
        yield environment


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


def test_a_users_error_ends_with_its_own_exit_code(head: dict[str, str], tmp_path: Path) -> None:
    done = submit(head, tmp_path, "train.sh", "quikstart", "first")
    assert done.returncode == 2
    assert "did you mean 'quickstart'?" in done.stdout
    assert "exit code 2" in done.stderr
