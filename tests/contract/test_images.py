"""Images: what they are built from, their versions and health check, and the compose file."""

from __future__ import annotations

import re
import runpy
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import REPO


def require_ray_start(words: list[str]) -> None:
    """Ray's own command line takes these words."""
    from ray.scripts.scripts import start

    assert words[:2] == ["ray", "start"]
    start.make_context("start", words[2:])


def pinned() -> dict[str, str]:
    """Package -> version of the constraints file."""
    lines = (REPO / "docker" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_constraints_pin_every_dependency_and_name_no_host() -> None:
    text = (REPO / "docker" / "constraints.txt").read_text()
    assert "://" not in text
    assert not any(line.startswith("-") for line in text.splitlines())
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    versions = {canonicalize_name(name): version for name, version in pinned().items()}
    seen: set[str] = set()

    def look(line: str) -> None:
        """A requirement is pinned, and so is what it needs, as far as it is installed."""
        need = Requirement(line)
        name = canonicalize_name(need.name)
        assert name in versions, f"{name} is not pinned"
        if name in seen and not need.extras:
            return
        seen.add(name)
        for child in metadata.requires(name) or ():
            wanted = Requirement(child).marker
            extras = ("", *need.extras)
            if wanted is None or any(wanted.evaluate({"extra": extra}) for extra in extras):
                look(child)

    for line in project["dependencies"]:
        look(line)
        need = Requirement(line)
        assert need.specifier.contains(versions[canonicalize_name(need.name)]), line
    assert len(seen) > 40


def test_the_image_is_built_from_what_goes_into_it_and_runs_without_rights() -> None:
    lines = (REPO / "docker" / "Dockerfile").read_text().splitlines()
    stages = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert stages == ["build", "build-cpu", "build-cuda", "runtime", "cpu", "cuda"]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "1000"  # by number: Kubernetes cannot tell a name from root
    installs = [line for line in lines if "pip install" in line]
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)
    sent = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((REPO / name).exists() for name in sent)
    assert {
        "cirkd_ray",
        "search_spaces",
        "pyproject.toml",
        "docker/constraints.txt",
        "docker/healthy.py",
    } <= sent


def healthy() -> Any:
    return runpy.run_path(str(REPO / "docker" / "healthy.py"))["main"]


def test_a_container_without_ray_is_well(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(b"python\0x\0")
    assert healthy()(tmp_path) == 0


@pytest.mark.parametrize(("answer", "code"), [(200, 0), (503, 1), (None, 1)])
def test_a_node_is_as_well_as_its_agent_says(answer: int | None, code: int, tmp_path: Path) -> None:
    class Agent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/local_raylet_healthz"
            self.send_response(answer or 200)
            self.end_headers()
            self.wfile.write(b"success")

        def log_message(self, *words: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Agent)
    (tmp_path / "7").mkdir()
    agent = f"--dashboard_agent_command=python agent.py --listen-port={server.server_port} --x=1"
    (tmp_path / "7" / "cmdline").write_bytes(f"/opt/ray/core/raylet\0{agent}\0".encode())
    if answer is None:
        server.server_close()
    else:
        Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert healthy()(tmp_path) == code
    finally:
        if answer is not None:
            server.shutdown()
            server.server_close()


def test_the_compose_file_listens_on_this_machine_alone_and_starts_ray_as_ray_takes_it() -> None:
    services = yaml.safe_load((REPO / "docker" / "compose.yaml").read_text())["services"]
    assert set(services) == {"head", "worker", "tensorboard"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["resources"]["limits"]
    assert services["head"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert services["head"]["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    over = yaml.safe_load((REPO / "docker" / "compose.gpu.yaml").read_text())["services"]
    assert set(over) <= set(services)
    for name in ("head", "worker"):
        require_ray_start([re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in services[name]["command"]])
