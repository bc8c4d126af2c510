"""A teacher's weights on each node once, not once for each trial that runs there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import WeightsError
from cirkd_ray.files import whole_folder
from cirkd_ray.weights.card import locate


def staged(spec: RunSpec, cache: Path | None = None) -> RunSpec:
    """The same run with its teacher's weights on this node's own disk.

    Args:
        spec: a resolved recipe; without a teacher, or with one that is no local file, it comes back as it is.
        cache: the node's folder of copies; default: in the system's folder of temporary files.
    """
    if spec.teacher is None or spec.teacher.weights is None:
        return spec
    source = Path(spec.teacher.weights)
    try:
        weights, card = locate(source)
    except WeightsError:
        return spec  # an address, or a mistake that loading it will name
    files = [weights, *([card] if card.is_file() else [])]
    folder = (cache or Path(tempfile.gettempdir()) / f"cirkd-weights-{os.getuid()}") / _version(files)
    copied = folder if source.is_dir() else folder / source.name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _copy(files, folder)
    tree = spec.to_dict()
    tree["teacher"]["weights"] = str(copied)
    return from_tree(tree)


def _version(files: list[Path]) -> str:
    """A name for these very files: another path, size or time is another copy."""
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _copy(files: list[Path], folder: Path) -> None:
    with whole_folder(folder) as partial:
        for file in files:
            shutil.copy2(file, partial / file.name)
