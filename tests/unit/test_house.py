"""The shape of the house: what imports what, and what lies where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.paths import REPO

PACKAGE = REPO / "cirkd_ray"
FLOORS = (
    ("errors", "types", "files", "device"),
    ("config",),
    ("losses",),
    ("models",),
    ("data",),
    ("weights",),
    ("data_tools",),
    ("evaluate",),
    ("train",),
    ("sweep",),
    ("compare",),
    ("doctor",),
    ("report",),
    ("cluster",),
    ("bench",),
    ("commands", "cli", "__main__"),
)
"""The rooms from the ground up. A room imports only rooms below it; losses, models and data do not meet."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
APART = {"losses": {"models", "data"}, "models": {"losses", "data"}, "data": {"losses", "models"}}
WITH_RAY = {"cluster", "bench", "commands", "cli", "__main__"}
LATE_ROOMS = {"commands", "cli", "bench"}
"""Rooms whose functions may import anything, so that `--help` stays fast."""
LATE_PACKAGES = {
    "torchvision",
    "ray",
    "matplotlib",
    "optuna",
    "scipy",
    "fsspec",
    "onnx",
    "onnxruntime",
    "rich",
    "torch",
    "mlflow",
    "wandb",
}
"""Slow or optional packages, which functions elsewhere may import."""
TOP_LEVEL = {
    "cirkd_ray", "search_spaces", "jobs", "tests", "docker", "docs", "pyproject.toml", "README.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE",
}  # fmt: skip


class Import(NamedTuple):
    """`target` is a file of the package where it is one, else what the statement names."""

    path: Path
    line: int
    target: str
    in_function: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> Iterator[Import]:
    """Every import statement of a file, those for type checkers included."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, a.name, inside) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    target = whole if whole in MODULES else child.module or ""
                    yield Import(path, child.lineno, target, inside)
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


IMPORTS = [item for path in MODULES.values() for item in imports_of(path)]
OWN = [item for item in IMPORTS if item.target.split(".")[0] == "cirkd_ray"]


def test_every_file_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} - {""} == set(FLOOR)


def test_each_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for item in OWN:
        here, there = room_of(module_of(item.path)), room_of(item.target)
        if not here or not there or here == there:
            continue
        if FLOOR[there] > FLOOR[here] or there in APART.get(here, ()):
            wrong.append(f"{item.path.relative_to(REPO)}:{item.line} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {module: set() for module in MODULES}
    for item in OWN:
        if item.target in MODULES:
            arrows[module_of(item.path)].add(item.target)
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join((*chain[chain.index(module) :], module))
        if module not in done:
            for target in arrows[module]:
                visit(target, (*chain, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_only_the_cluster_and_commands_import_ray() -> None:
    wrong = [
        f"{item.path.relative_to(REPO)}:{item.line}"
        for item in IMPORTS
        if item.target.split(".")[0] == "ray" and room_of(module_of(item.path)) not in WITH_RAY
    ]
    assert not wrong, wrong


def test_functions_import_only_what_is_slow_or_optional() -> None:
    wrong = []
    for item in IMPORTS:
        here, package = room_of(module_of(item.path)), item.target.split(".")[0]
        late = here in LATE_ROOMS or package in LATE_PACKAGES or (here == "cluster" and _needs_ray(item))
        if item.in_function and not late:
            wrong.append(f"{item.path.relative_to(REPO)}:{item.line} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def _needs_ray(item: Import) -> bool:
    """The cluster's files import Ray at their top: the session prepares the environment before."""
    return item.target.startswith("cirkd_ray.cluster") or _in_a_task(item)


def _in_a_task(item: Import) -> bool:
    """What a remote task imports is imported where it runs, not where it is sent from."""
    return item.path.name in ("latency.py", "measuring.py")


def test_the_core_loads_without_ray() -> None:
    core = [m for m in MODULES if room_of(m) not in {*WITH_RAY, ""}]
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {core!r}]; "
        "sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_and_functions_can_be_seen_at_once() -> None:
    wrong = []
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 350:
            wrong.append(f"{path.relative_to(REPO)} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    wrong.append(f"{path.relative_to(REPO)}:{node.lineno} {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_the_top_level_holds_only_what_is_designed() -> None:
    if not (REPO / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL
