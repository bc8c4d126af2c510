"""What goes up with a job: the working directory without links, data and runs, and this package."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

import cirkd_ray
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.space_file import spaces_folder

MIB = 2**20
LARGE = 10 * MIB
"""A file above this is named."""
LIMIT = 100 * MIB
"""What the head takes of one package."""
ENTRIES = 100_000
"""Files and folders after which measuring ends: no working directory has so many."""
APART = ("/data", "/runs")
"""Never code, whatever .gitignore says."""
IGNORES = (".gitignore", ".rayignore")
"""They have been heeded when the files are packed, and do not count a second time, for this package."""
VARIABLES = {
    "PYTHONUNBUFFERED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "300",  # in which a job that is to stop writes a checkpoint; Ray gives 3
}
"""Environment variables of every job."""
SETUP_SECONDS = 1800
"""In which a node must have installed what a job depends on."""


def runtime_environment(kind: str, variables: dict[str, str]) -> dict[str, Any]:
    """What the nodes need besides the working directory.

    Args:
        kind: `pip` (the nodes install what the package depends on, and keep it for the next job), `image`
            (their image has it), or the path of a runtime environment in Ray's form.
        variables: environment variables of the job.

    Raises:
        ConfigError: there is no such file, or it is none.
    """
    if kind == "image":
        tree: dict[str, Any] = {}
    elif kind == "pip":
        tree = {"pip": {"packages": requirements()}, "config": {"setup_timeout_seconds": SETUP_SECONDS}}
    elif Path(kind).is_file():
        try:
            tree = yaml.safe_load(Path(kind).read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"--env {kind}: is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("excludes") or [], list):
            raise ConfigError(f"--env {kind}: give a mapping of settings, with a list as `excludes`")
        values = tree.get("env_vars") or {}
        if not isinstance(values, dict) or not all(isinstance(each, str) for each in values.values()):
            raise ConfigError(
                f"--env {kind}: give a mapping of names to texts as `env_vars`, numbers in quotes"
            )
    else:
        raise ConfigError(f"--env {kind}: pip, image or the path of a runtime environment")
    return {**tree, "env_vars": {**VARIABLES, **(tree.get("env_vars") or {}), **variables}}


def requirements() -> list[str]:
    """What the package depends on: of a checkout as it says now, else as it was installed."""
    project = Path(cirkd_ray.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in metadata.requires("cirkd-ray") or [] if "extra ==" not in line]


@contextmanager
def packed(root: Path, excludes: list[str], say: Callable[[str], None]) -> Iterator[Path]:
    """A temporary folder with what goes up: the files of `root`, and this package unless `root` holds it.

    One line names what is left out, and one what is large. What .gitignore and .rayignore name never goes up.

    Args:
        root: the working directory.
        excludes: patterns as those of .gitignore.
        say: hears these lines.

    Raises:
        ConfigError: there is more than the head takes.
    """
    how = f"to leave a file out, add a line with its path to {root / '.rayignore'}"
    files, links = measure(root, [*excludes, *APART], how)
    apart = [name.strip("/") for name in APART if (root / name.strip("/")).exists()]
    if links or apart:
        names = ", ".join([*apart, *links][:6]) + (", ..." if len(apart) + len(links) > 6 else "")
        say(f"left out: {names} (data and runs stay; links are not followed)")
    total = sum(files.values())
    if total > LIMIT:
        raise ConfigError(
            f"{root}: {total / MIB:.0f} MiB are too much, the head takes {LIMIT / MIB:.0f}: "
            f"{_shown(files)};\n{how}"
        )
    if max(files.values(), default=0) > LARGE:
        say(f"{total / MIB:.0f} MiB go up, of these {_shown(files)}; {how}")
    with tempfile.TemporaryDirectory(prefix="cirkd-submit-") as name:
        folder = Path(name)
        for file in files:
            if Path(file).name not in IGNORES:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / file, folder / file)
        if not (folder / "cirkd_ray" / "__init__.py").is_file():
            _add_package(folder / "cirkd_ray")
        yield folder


def _add_package(folder: Path) -> None:
    """Copy this package, as a wheel would hold it."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(cirkd_ray.__file__).parent, folder, ignore=skip)
    shutil.copytree(spaces_folder(), folder / "search_spaces", ignore=skip, dirs_exist_ok=True)


def measure(root: Path, excludes: list[str], how: str) -> tuple[dict[str, int], list[str]]:
    """Bytes of each file that goes up, and the links that do not; both relative to `root`.

    Raises:
        ConfigError: there are more than `ENTRIES`; `how` says what to do.
    """
    files: dict[str, int] = {}
    links: list[str] = []
    seen = 0

    def is_link(path: Path) -> bool:
        if path.is_symlink():
            links.append(str(path.relative_to(root)))
        return path.is_symlink()

    def look(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen > ENTRIES:
            raise ConfigError(f"{root}: holds over {ENTRIES} files; submit from a clean folder;\n{how}")
        if path.is_file():
            files[str(path.relative_to(root))] = path.stat().st_size

    defaults = [*get_runtime_env_default_excludes(), *excludes]
    honoured = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(root, [_get_excludes(root, defaults), is_link], look, honoured, _Silent())
    return files, links


class _Silent:
    """Stands for a logger."""

    def info(self, *words: object) -> None: ...

    def error(self, *words: object) -> None: ...


def _shown(files: dict[str, int], count: int = 4) -> str:
    """The largest files and folders of the first level, with their sizes."""
    parts: dict[str, int] = {}
    for name, size in files.items():
        part = name if size > LARGE else name.split("/", 1)[0] + ("/" if "/" in name else "")
        parts[part] = parts.get(part, 0) + size
    largest = sorted(parts, key=lambda part: -parts[part])[:count]
    return ", ".join(f"{part} {parts[part] / MIB:.1f} MiB" for part in largest if parts[part] > MIB)
