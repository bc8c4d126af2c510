"""Hosts of a network of their own on this machine, whose links can be cut: network namespaces and a bridge.

All of it is in namespaces of one process (`unshare`, of a user without rights, too), and ends with it.
Nothing is seen or reached from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.several_nodes import restarts
from tests.paths import REPO

ALONE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
HEAD = "10.77.0.1"


def permitted() -> bool:
    """Whether this machine lets us make networks."""
    try:
        words = [*ALONE, "ip", "link", "add", "br0", "type", "bridge"]
        return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False


def through_cuts(recipe: Path, out: Path, cuts: list[tuple[int, float, bool]]) -> dict[str, Any]:
    """Train a recipe in `out/run` on two hosts beside a head, and cut the second one's link.

    Args:
        recipe: of two workers of one CPU each, which waits for nodes.
        out: for the run.
        cuts: (lines of metrics before it, seconds that it lasts, whether the run loses the host) of each.

    Returns:
        The command's `code`, and of each cut `seconds` from its beginning, and `healed` from its end, to the
        next line of metrics, after a restart where the host was lost; `restarts` so far.
    """
    plan = json.dumps({"recipe": str(recipe), "out": str(out), "cuts": cuts})
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(REPO),
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_AUTH_MODE": "token",
    }
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", __name__, plan],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "text": done.stdout + done.stderr}


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


class _Hosts:
    """Three hosts: a head without CPUs, and two with one each, that start Ray again when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "PYTHONUNBUFFERED": "1"}
        ip("link set lo up")
        ip("link add br0 type bridge")
        ip("addr add 10.77.0.254/24 dev br0")
        ip("link set br0 up")
        self.places = [self._host(number) for number in (1, 2, 3)]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        head = [*start, "--head", f"--node-ip-address={HEAD}", "--num-cpus=0", "--port=6379"]
        self.head = self.on(0, [*head, f"--temp-dir={folder}/0"])
        for number in (1, 2):
            words = [*start, f"--address={HEAD}:6379", f"--node-ip-address=10.77.0.{number + 1}"]
            node = " ".join([*words, "--num-cpus=1", f"--temp-dir={folder}/{number}"])
            self.on(number, ["sh", "-c", f"while :; do {node}; sleep 1; done"])  # as a supervisor does

    def _host(self, number: int) -> int:
        """The process whose network it is."""
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        here = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == here:
            time.sleep(0.01)
        ip(f"link add v{number} type veth peer name eth0 netns {holder.pid}")
        ip(f"link set v{number} master br0 up")
        for words in (f"addr add 10.77.0.{number}/24 dev eth0", "link set eth0 up", "link set lo up"):
            inside = ["nsenter", "--target", str(holder.pid), "--net", "ip", *words.split()]
            subprocess.run(inside, check=True)
        return holder.pid

    def on(self, host: int, words: list[str]) -> subprocess.Popen[bytes]:
        """Start a command on a host."""
        inside = ["nsenter", "--target", str(self.places[host]), "--net", *words]
        with (self.folder / f"{host}.log").open("a") as log:
            return subprocess.Popen(inside, env=self.environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until the head answers."""
        while self.head.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HEAD, 6379), timeout=1):
                time.sleep(5)  # its own node comes next
                return
            time.sleep(0.5)
        raise RuntimeError((self.folder / "0.log").read_text())

    def cut(self, host: int, seconds: float) -> None:
        """Cut its link for so long."""
        ip(f"link set v{host + 1} down")
        time.sleep(seconds)
        ip(f"link set v{host + 1} up")


def main(plan: dict[str, Any]) -> None:
    """Do it, and print what came of it as the last line."""
    folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))  # short: it holds sockets
    found = []
    try:
        hosts = _Hosts(folder)
        hosts.environment["RAY_ADDRESS"] = f"{HEAD}:6379"
        words = ["train", plan["recipe"], "--out", plan["out"], "--name", "run", "--resume"]
        hosts.wait()
        run = RunDirectory(Path(plan["out"]) / "run")
        command = hosts.on(0, [sys.executable, "-m", "cirkd_ray", *words])
        for lines, seconds, lost in plan["cuts"]:
            while command.poll() is None and len(run.read_metrics()) < lines:
                time.sleep(0.05)
            wanted, begun = len(restarts(run)) + lost, time.monotonic()
            hosts.cut(2, seconds)
            healed, step = time.monotonic(), run.read_metrics()[-1]["step"]
            while command.poll() is None and len(restarts(run)) < wanted:
                time.sleep(0.05)
            step = restarts(run)[-1] if lost else step
            while command.poll() is None and run.read_metrics()[-1]["step"] <= step:
                time.sleep(0.05)
            now = time.monotonic()
            found.append({"seconds": now - begun, "healed": now - healed, "restarts": len(restarts(run))})
        code = command.wait(timeout=900)
        said = "".join(path.read_text() for path in folder.glob("*.log"))
        print(said, json.dumps({"code": code, "cuts": found}), sep="\n", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
