"""A Ray head of one's own with token authentication: `ray start --head --block`, ended by its process id."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def private_head(cpus: int) -> Iterator[dict[str, str]]:
    """The environment of a client of the head: address and token."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names = (*names, "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: it holds sockets
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    clean |= {
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--num-cpus={cpus}",
    ]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env={**clean, "RAY_AUTH_MODE": "token"}, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}/api/healthz", head)
        yield {**clean, "RAY_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        head.terminate()
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, head: subprocess.Popen[bytes]) -> None:
    """Until the agent that takes jobs answers, with whatever status."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert head.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")
