"""The pages and the README: their commands are taken, their Python runs, their YAML is valid."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cirkd_ray.config import from_tree, load_run, load_tree
from cirkd_ray.config.composition import apply_overrides, flatten
from cirkd_ray.data.folder import read_description
from cirkd_ray.data.storage import LocalStorage
from cirkd_ray.sweep.space_check import check_space
from cirkd_ray.sweep.space_file import load_space
from tests.commandline import parsed
from tests.paths import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
BLOCKS = [
    (str(page.relative_to(REPO)), number, language, text)
    for page in PAGES
    for number, (language, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
]


def of(language: str) -> list[Any]:
    return [pytest.param(p, t, id=f"{p}-{n}") for p, n, found, t in BLOCKS if found == language]


def commands(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    parts = [part.strip() for line in joined.splitlines() for part in line.split("#")[0].split(";")]
    return [part for part in parts if re.match(r"cirkd \w", part)]


def test_blocks_are_of_known_languages() -> None:
    assert {language for _, _, language, _ in BLOCKS} <= {"sh", "python", "yaml", "text", "json"}
    named = {
        part.split()[1] for _, _, language, text in BLOCKS if language == "sh" for part in commands(text)
    }
    assert len(named) >= 12


@pytest.mark.parametrize(("page", "text"), of("sh"))
def test_command_lines_are_taken(page: str, text: str) -> None:
    for line in commands(text):
        line = re.sub(r" -- .*", "", line)  # of `submit`: checked by that command itself
        words = re.sub(r"\{([\w,]+)\}", lambda m: m[1].split(",")[0], line)
        assert isinstance(parsed(shlex.split(words)[1:]), dict), line


@pytest.mark.parametrize(("page", "text"), of("python"))
def test_python_runs(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    exec(compile(text, page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize(("page", "text"), of("yaml"))
def test_yaml_is_valid(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    title = re.match(r"# ([\w .]+?\w)(\s{2,}|$)", text, re.M)
    assert title is not None, f"{page}: begin the block with a comment that says which file it is"
    if title[1] == "space.yaml":
        (tmp_path / "space.yaml").write_text(text)
        check_space(load_space("space.yaml"))
    elif title[1] == "dataset.yaml":
        (tmp_path / "dataset.yaml").write_text(text)
        read_description(LocalStorage(tmp_path))
    elif title[1] in ("in the recipe", "in the space"):
        _parts(page, tmp_path)
        tree = yaml.safe_load(text)
        assert flatten(tree)
        if title[1] == "in the recipe":
            _check_over(tree)
    else:
        assert title[1].endswith(".yaml"), title[1]
        (tmp_path / title[1]).write_text(text)
        load_run(title[1])


def _parts(page: str, folder: Path) -> None:
    """The page's own Python, as the package that its YAML names."""
    (folder / "my_package").mkdir()
    own = [(language, text) for where, _, language, text in BLOCKS if where == page]
    for name in re.findall(r"my_package\.(\w+):", "".join(text for _, text in own)):
        python = [text for language, text in own if language == "python"]
        (folder / "my_package" / f"{name}.py").write_text("\n".join(python))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def _check_over(tree: dict[str, Any]) -> None:
    """A part of a recipe, laid over a shipped one as `extends` lays it."""
    base = load_tree("camvid/small/cirkd")
    whole = {**base, **{key: {**(base.get(key) or {}), **value} for key, value in tree.items()}}
    if "module" in tree.get("teacher", {}):
        whole["teacher"] = tree["teacher"]
    if "name" in tree.get("data", {}):
        whole["data"] = tree["data"]
    from_tree(apply_overrides(whole, {}))
