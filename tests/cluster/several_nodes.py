"""A run on a cluster of several nodes on this machine, to which things happen: `python -m ... PLAN`.

It has a Ray of its own, and nodes can only be started in a main thread. So tests start it as a process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.private_head import free_ports
from tests.paths import REPO


@dataclass(frozen=True)
class Event:
    """What happens to node number `node`.

    Attributes:
        line: when the run has so many lines of metrics.
        what: `kill`, `add` (one more with a CPU), `grow` (the same, and the run takes it) or `drain`, with
            `seconds` until it is killed.
    """

    line: int
    what: str
    node: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Happened:
    """What came of a plan.

    Attributes:
        code: of the command.
        steps: in the last line of metrics at each event; of `drain` when the node is killed.
        seconds: from a node's loss, the end of its notice or a node more to the first line of metrics after
            the restart.
        text: what was printed.
    """

    code: int
    steps: list[int]
    seconds: list[float]
    text: str


def happen(recipe: Path, out: Path, nodes: int, events: list[Event]) -> Happened:
    """Train a recipe in `out/run` on so many nodes of one CPU beside a head without any."""
    plan = {"recipe": str(recipe), "out": str(out), "nodes": nodes, "port": free_ports(1)[0]}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps({**plan, "events": [asdict(e) for e in events]})],
        env={**environment, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return Happened(**json.loads(done.stdout.splitlines()[-1]), text=text)


class _Nodes:
    """The nodes, and the run whose lines of metrics are the clock."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from ray.cluster_utils import Cluster

        # The cluster of other tests may have the usual port.
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": plan["port"]}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(plan["nodes"])]
        os.environ["RAY_ADDRESS"] = self.cluster.address
        words = ["train", plan["recipe"], "--out", plan["out"], "--name", "run", "--resume"]
        self.run, self.code = RunDirectory(Path(plan["out"]) / "run"), -1
        self.thread = threading.Thread(target=self._train, args=(words,))
        self.thread.start()

    def _train(self, words: list[str]) -> None:
        from cirkd_ray.cli import main

        self.code = main(words)

    def until(self, lines: int) -> None:
        while self.thread.is_alive() and len(self.run.read_metrics()) < lines:
            time.sleep(0.05)

    def do(self, event: Event) -> tuple[int, float]:
        """Returns the step of the last line at it, and the seconds from it until the run went on."""
        before, begun = len(restarts(self.run)), time.monotonic()
        if event.what in ("add", "grow"):
            self.nodes.append(self.cluster.add_node(num_cpus=1))
            return self.step(), self.recovery(begun, before) if event.what == "grow" else 0.0
        node = self.nodes[event.node]
        if event.what == "drain":
            drain(self.cluster.address, node.node_id, time.time() + event.seconds)
            time.sleep(event.seconds + 2)  # no machine goes to the second
            begun += event.seconds
        step = self.step()
        self.cluster.remove_node(node, allow_graceful=False)
        return step, self.recovery(begun, before)

    def recovery(self, begun: float, before: int) -> float:
        """Seconds from `begun` to the first line of metrics after one restart more than there were."""
        while self.thread.is_alive():
            found = restarts(self.run)
            if len(found) > before and self.step() > found[-1]:
                break
            time.sleep(0.05)
        return round(time.monotonic() - begun, 1)

    def step(self) -> int:
        """Of the last line."""
        rows = self.run.read_metrics()
        return int(rows[-1]["step"]) if rows else 0


def restarts(run: RunDirectory) -> list[int]:
    """The steps at which a run went on."""
    log = run.path / "log.txt"
    found = re.findall(r"continuing at step (\d+)", log.read_text() if log.exists() else "")
    return [int(step) for step in found]


def drain(address: str, node: str, end: float) -> None:
    """What a cloud's handler does at a notice: `ray drain-node` with the time that is left."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node, reason, "a test", int(end * 1000))
    assert accepted, why


def main(plan: dict[str, Any]) -> None:
    """Do it, and print what came of it as the last line."""
    nodes, found = _Nodes(plan), []
    for event in (Event(**each) for each in plan["events"]):
        nodes.until(event.line)
        found.append(nodes.do(event))
    nodes.thread.join()
    nodes.cluster.shutdown()
    steps, seconds = zip(*found, strict=True)
    print(json.dumps({"code": nodes.code, "steps": steps, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
