"""Reading what lies behind a URL through a working copy of it, which nobody here writes to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.files import write_text
from cirkd_ray.remote.address import url
from cirkd_ray.remote.copies import copy_of, url_of
from cirkd_ray.remote.store import Store
from cirkd_ray.remote.unit import MARK, Unit, Wanted

FACTS = ("run.yaml", "data.json", "data-files.json.gz", "result.json", "teacher.txt", "trial.json")
"""Files that tell what a folder is."""
FRESH = 30.0
"""Seconds for which this process takes what it has looked at for the newest."""
_TRIES = 4
_looked: dict[tuple[str, object], float] = {}


def _is_fresh(key: tuple[str, object]) -> bool:
    """Whether that was looked at a moment ago; it is now."""
    now = time.monotonic()
    return now - _looked.get(key, -FRESH) < FRESH


def fetch_folder(folder: Path, names: tuple[str, ...] = FACTS) -> bool:
    """Fetch files that lie directly in a working copy's folder.

    Args:
        folder: any; nothing happens where it is no working copy.
        names: those that are fetched, where they are there.

    Returns:
        Whether there is such a folder.
    """
    return _fetch(folder, names, lambda path: path in names)


def fetch_all(folder: Path, wanted: Wanted) -> bool:
    """The same for all files below it, in the folders of its runs as well.

    Args:
        wanted: asked with the path of each file and folder, below the unit in which it lies.
    """
    if not _fetch(folder, wanted, wanted):
        return folder.is_dir()
    store, waiting = Store(str(url_of(folder)), _TRIES), [""]
    while waiting:
        parent = waiting.pop()
        names = store.names(parent)
        if parent and MARK in names:
            _fetch(folder / parent, wanted, wanted)
        paths = {f"{parent}/{name}" if parent else name: entry for name, entry in names.items()}
        waiting += [p for p, e in paths.items() if e.get("type") == "directory" and wanted(p)]
    return True


def is_figure(path: str) -> bool:
    """Whether figures and recipes are in a file or folder: no networks, no checkpoints, no pages."""
    name = path.rpartition("/")[2]
    left_out = ("checkpoints", "donors", "tune", "tensorboard", "report", "eval")
    return name not in left_out and not name.endswith((".safetensors", ".onnx"))


def _fetch(folder: Path, key: object, wanted: Wanted) -> bool:
    found = url_of(folder)
    if found is None or _is_fresh((found, key)):
        return folder.is_dir()
    unit = Unit(folder, _TRIES)
    if not unit.store.names():
        return False
    with unit.held():
        unit.pull(unit.is_mine(unit.writer()), wanted)
    _looked[found, key] = time.monotonic()
    return True


def fetch_near(folder: Path, named: Callable[[str], bool]) -> None:
    """Fetch the facts of folders beside a working copy's.

    Args:
        folder: any; nothing happens where it is no working copy.
        named: asked with the name of each.
    """
    if (found := url_of(folder.parent)) is not None:
        for name in Store(found, _TRIES).names():
            if named(name):
                fetch_folder(folder.parent / name)


def whole_folders(folder: Path, mark: str) -> list[str]:
    """Names of the folders in a working copy's folder that are whole behind its URL, as far as it is reached.

    Args:
        folder: any; there are none where it is no working copy.
        mark: a file that is uploaded when all others in its folder are.
    """
    found = url_of(folder)
    if found is None:
        return []
    store = Store(found, 1)
    with suppress(DataError):
        return [name for name in store.names() if store.token(f"{name}/{mark}") is not None]
    return []


def fetch_file(place: str | Path) -> Path:
    """A single file on this machine; other places as they are.

    Raises:
        DataError, TransientError: it is behind a URL and cannot be read there.
    """
    found = url(place)
    if found is None:
        return Path(place)
    target = copy_of(found)
    if target.is_file() and _is_fresh((found, "")):
        return target
    store, note = Store(found, _TRIES), target.with_name(f".{target.name}.there.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        token = json.dumps(store.token(""))
        if not (target.is_file() and note.is_file() and note.read_text() == token):
            store.fetch("", target)
            write_text(note, token)
    _looked[found, ""] = time.monotonic()
    return target


def fetch_checkpoint(place: str, manifest: str, timeout: float) -> Path:
    """A checkpoint's folder on this machine, by its address, once it is there.

    Args:
        place: its address, which another machine of the same run has told.
        manifest: the text of its manifest.
        timeout: seconds in which it is to be uploaded.

    Raises:
        TransientError: it was not.
    """
    folder = copy_of(place)
    deadline = time.monotonic() + timeout
    unit = Unit(folder.parent.parent)
    while not _is_there(folder, manifest):
        trouble = "it has not been uploaded"
        try:
            with unit.held():
                unit.pull(False, lambda path: path in unit.known or _leads_to(path, unit, folder))
        except DataError as error:
            trouble = str(error)
        if time.monotonic() > deadline:
            raise TransientError(f"{place}: is not there after {timeout:.0f} s ({trouble})")
        time.sleep(0.2)
    return folder


def _leads_to(path: str, unit: Unit, folder: Path) -> bool:
    """Whether a path of the unit is the folder, lies in it or above it."""
    there = unit.folder / path
    return there == folder or folder in there.parents or there in folder.parents


def _is_there(folder: Path, manifest: str) -> bool:
    try:
        whole = (folder / "state.pt").stat().st_size == json.loads(manifest)["bytes"]
        return whole and (folder / "manifest.json").read_text() == manifest
    except (OSError, ValueError):
        return False
