"""Runs in a bucket on nodes that share no folder: each has working copies of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cli import main
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from tests.buckets import KEYS, Machines, Server, s3_server
from tests.cluster.private_head import free_ports
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
CLUSTER = """
import os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster

scratch = Path(sys.argv[1])

def node(name, cpus):
    return {"num_cpus": cpus, "env_vars": {"CIRKD_SCRATCH": str(scratch / name)}}

os.environ["CIRKD_SCRATCH"] = str(scratch / "head")
head = {**node("head", 0), "include_dashboard": True, "dashboard_port": int(sys.argv[2])}
cluster = Cluster(initialize_head=True, head_node_args=head)
os.environ["RAY_ADDRESS"] = cluster.address
nodes = [cluster.add_node(**node(name, 1)) for name in ("one", "two")]

from cirkd_ray.cli import main

def meanwhile(act, argv):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(argv)))
    thread.start()
    act(thread)
    thread.join()
    cluster.shutdown()
    sys.exit(codes[0])
"""
LOSE = """
def steps(name):
    files = scratch.glob(f"{name}/s3/shelf/runs/a/metrics.jsonl")
    return max((path.read_text().count("step") for path in files), default=0)

def lose(thread):
    while max(steps("one"), steps("two")) < 30 and thread.is_alive():
        time.sleep(0.1)
    main_rank = "one" if steps("one") > steps("two") else "two"
    print("the main rank was on", main_rank, flush=True)
    cluster.remove_node(nodes[0 if main_rank == "one" else 1], allow_graceful=False)
    cluster.add_node(**node("three", 1))

meanwhile(lose, sys.argv[3:])
"""


def run(code: str, server: Server, tmp_path: Path, *argv: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"AWS_ENDPOINT_URL": server.endpoint, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", **KEYS}
    port = str(free_ports(1)[0])
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER + code, str(tmp_path / "scratch"), port, *argv],
        env={**environment, "PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def recipe(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "tiny.yaml"
    cluster = {"upload_every": 0.5, "workers": 2}
    path.write_text(json.dumps(tiny_baseline(cluster=cluster, **changes).to_dict()))
    return path


def test_a_run_loses_the_node_with_its_disk_and_goes_on_from_the_bucket(tmp_path: Path) -> None:
    length = {"steps": 100, "log_every": 1, "validate_every": 50, "checkpoint_every": 5}
    with s3_server("shelf") as server:
        argv = ["train", str(recipe(tmp_path, train=length)), "--out", "s3://shelf/runs", "--name", "a"]
        said = run(LOSE, server, tmp_path, *argv)
        keys = server.keys("shelf")
        lines = [json.loads(line) for line in server.read("shelf", "runs/a/metrics.jsonl").splitlines()]
        log = server.read("shelf", "runs/a/log.txt").decode()
    assert "the main rank was on" in said
    assert "restart 1 of 2" in log
    assert "continuing at step" in log
    assert [row["step"] for row in lines] == list(range(1, 101))
    assert "runs/a/result.json" in keys
    assert {key.split("/")[3] for key in keys if "checkpoints/step" in key} == {
        "step_00000095",
        "step_00000100",
    }
    assert not list((tmp_path / "scratch" / "head").glob("s3/shelf/runs/a/checkpoints/step_*"))
    directory = RunDirectory(tmp_path / "scratch" / "head" / "s3" / "shelf" / "runs" / "a")
    assert directory.read_result() is not None, "the driver's machine has the result"
    alone = RunDirectory(tmp_path / "alone")
    spec = tiny_baseline(train=length)
    alone.create(spec)
    run_local(spec, alone)
    assert [row["step"] for row in figures(directory)] == [row["step"] for row in figures(alone)]


LEAD = """
meanwhile(lambda thread: None, sys.argv[3:])
"""


def test_a_sweep_in_a_bucket_is_led_from_the_head_and_reported_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    length = {"steps": 4, "log_every": 2, "validate_every": 2, "checkpoint_every": 2}
    space = tmp_path / "space.yaml"
    space.write_text(
        f"name: two\nrecipe: {recipe(tmp_path, train=length)}\n"
        "parameters: {optim.lr: {grid: [0.01, 0.02]}}\n"
        "searcher: {name: grid}\nbudget: {steps: 4, report_every: 2}\nresources: {workers: 2}\n"
        "set: {cluster.upload_every: 0.5}\n"
    )
    with s3_server("shelf") as server:
        argv = ["tune", str(space), "--out", "s3://shelf/runs"]
        said = run(LEAD, server, tmp_path, *argv)
        keys = server.keys("shelf")
        assert "s3://shelf/runs/two" in said
        trials = {key.split("/")[3] for key in keys if key.startswith("runs/two/trials/")}
        assert len(trials) == 2
        for trial in trials:
            assert f"runs/two/trials/{trial}/g0/result.json" in keys
            outcome = json.loads(server.read("shelf", f"runs/two/trials/{trial}/outcome.json"))
            assert outcome["status"] == "finished"
        assert "runs/two/controls/defaults-s0/result.json" in keys
        assert "runs/two/best.yaml" in keys
        for key, value in {"AWS_ENDPOINT_URL": server.endpoint, **KEYS}.items():
            monkeypatch.setenv(key, value)
        Machines(tmp_path / "scratch", monkeypatch).on("desk")
        assert main(["report", "s3://shelf/runs/two"]) == 0
        assert "s3://shelf/runs/two/report/index.html" in capsys.readouterr().out
        assert "runs/two/report/index.html" in server.keys("shelf")
        assert main(["status", "s3://shelf/runs/two"]) == 0
        assert "2 finished" in capsys.readouterr().out
        again = run(LEAD, server, tmp_path, *argv)
    assert "trial" in again, "finished trials are not run again"


def test_a_comparison_in_a_bucket(tmp_path: Path) -> None:
    length = {"steps": 2, "log_every": 2, "validate_every": 2, "checkpoint_every": 2}
    one = recipe(tmp_path, train=length)
    two = tmp_path / "other.yaml"
    two.write_text(json.dumps({**json.loads(one.read_text()), "name": "other"}))
    with s3_server("shelf") as server:
        argv = ["compare", str(two), "--seeds", "1", "--out", "s3://shelf/runs", "--name", "both"]
        run(LEAD, server, tmp_path, *argv)
        keys = server.keys("shelf")
    runs = {key.split("/")[3] for key in keys if key.startswith("runs/both/runs/")}
    assert runs
    assert all(f"runs/both/runs/{name}/result.json" in keys for name in runs)
    assert "runs/both/report/index.html" in keys
