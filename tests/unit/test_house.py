"""The shape of the house: what imports what, and what lies where."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.paths import REPO

CORE = ("losses", "models", "data", "engine")
MODULES = sorted((REPO / "cirkd_ray").rglob("*.py"))
TOP_LEVEL = {
    "cirkd_ray", "search_spaces", "jobs", "tests", "docker", "pyproject.toml", "README.md", "CONTRIBUTING.md",
    "CHANGELOG.md", "LICENSE",
}  # fmt: skip


def test_the_core_imports_no_ray() -> None:
    code = (
        "import importlib, pkgutil, sys, cirkd_ray;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(cirkd_ray.__path__, 'cirkd_ray.')"
        f" if m.name.split('.')[1] in {CORE!r}];"
        "sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrows_run_one_way() -> None:
    outer = {f"cirkd_ray.{part}" for part in ("cluster", "report", "commands", "cli", "bench")}
    for path in MODULES:
        part = path.relative_to(REPO / "cirkd_ray").parts[0]
        if part not in CORE:
            continue
        forbidden = {"ray", *outer, *(() if part == "engine" else ("cirkd_ray.engine",))}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                wrong = any(name == f or name.startswith(f + ".") for f in forbidden)
                assert not wrong, f"{path}:{node.lineno} imports {name}"


def test_the_top_level_holds_only_what_is_designed() -> None:
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL
