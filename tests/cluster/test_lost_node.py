"""A sweep that loses the node on which a trial's workers run goes on with the node that takes its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cirkd_ray.sweep.folder import read_sweep
from tests.cluster.private_head import free_ports
from tests.paths import REPO
from tests.tinyrun import tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
DRIVER = """
import os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster

folder = Path(sys.argv[2])
head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": int(sys.argv[3])}
cluster = Cluster(initialize_head=True, head_node_args=head)
first = cluster.add_node(num_cpus=2)
os.environ["RAY_ADDRESS"] = cluster.address

def reports():
    files = folder.glob("trials/*/g0/metrics.jsonl")
    return max((path.read_text().count('"miou"') for path in files), default=0)

def sweep():
    from cirkd_ray.sweep.space_file import load_space
    from cirkd_ray.cluster.sweep import run_sweep
    run_sweep(load_space(sys.argv[1]), folder, folder.parent, print)

thread = threading.Thread(target=sweep)
thread.start()
while reports() < 3 and thread.is_alive():
    time.sleep(0.1)
cluster.remove_node(first, allow_graceful=False)
print("lost after", reports(), "reports", flush=True)
cluster.add_node(num_cpus=2)
thread.join()
cluster.shutdown()
"""


def test_a_sweep_that_loses_a_node_goes_on(tmp_path: Path) -> None:
    recipe, space = tmp_path / "tiny.yaml", tmp_path / "space.yaml"
    recipe.write_text(tiny_baseline().to_yaml())
    space.write_text(
        f"recipe: {recipe}\nparameters: {{optim.lr: {{grid: [0.01, 0.02]}}}}\nsearcher: {{name: grid}}\n"
        "budget: {steps: 200, report_every: 20}\nresources: {workers: 2}\ncontrols: false\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    port = str(free_ports(1)[0])  # the cluster of the other tests may have the usual one
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(space), str(tmp_path / "sweep"), port],
        env={**environment, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lost = int(done.stdout.partition("lost after ")[2].split()[0])
    assert 3 <= lost < 10, "it was not on its way when the node went"
    trials = read_sweep(tmp_path / "sweep").trials
    assert [trial.status for trial in trials] == ["finished"] * 2
    assert all([row["step"] for row in trial.rows] == list(range(20, 220, 20)) for trial in trials)
