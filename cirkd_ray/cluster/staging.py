"""A teacher's weights on each node once, not once for each trial that runs there.

Who uses a copy holds a lock on it, which ends with its process however that ends. Copies that nobody holds
are removed: by a call at its end, on each node where its workers had some, and by every worker that takes
one, which finds what calls that were killed have left.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cirkd_ray.cluster.stopping import this_call
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import WeightsError
from cirkd_ray.files import whole_folder
from cirkd_ray.weights.card import locate

TRIES = 5
"""Looks, a second apart, at a copy whose users may be about to end."""


@contextmanager
def staged(spec: RunSpec, cache: Path | None = None) -> Iterator[RunSpec]:
    """The same run with its teacher's weights on this node's own disk, for the length of the block.

    Args:
        spec: a resolved recipe; without a teacher, or with one that is no local file, it comes back as it is,
            and so it does where the disk has no room.
        cache: the node's folder of copies; default: in the system's folder of temporary files.
    """
    found = _files(spec)
    if spec.teacher is None or found is None:
        yield spec
        return
    source, files = found
    cache = cache or Path(tempfile.gettempdir()) / f"cirkd-weights-{os.getuid()}"
    try:
        lock, folder = _held(files, cache)
    except OSError:
        yield spec
        return
    try:
        _note(cache)
        remove_unused(cache)
        tree = spec.to_dict()
        tree["teacher"]["weights"] = str(folder if source.is_dir() else folder / source.name)
        yield from_tree(tree)
    finally:
        os.close(lock)


def _files(spec: RunSpec) -> tuple[Path, list[Path]] | None:
    """The teacher's weights, as they are named and as the files that belong to them."""
    if spec.teacher is None or spec.teacher.weights is None:
        return None
    try:
        weights, card = locate(Path(spec.teacher.weights))
    except WeightsError:
        return None  # an address, or a mistake that loading it will name
    return Path(spec.teacher.weights), [weights, *([card] if card.is_file() else [])]


def _version(files: list[Path]) -> str:
    """A name for these very files: another path, size or time is another copy."""
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _held(files: list[Path], cache: Path) -> tuple[int, Path]:
    """A copy of these files, made where there is none, and the open lock that keeps it there.

    Raises:
        OSError: it cannot be made.
    """
    folder = cache / _version(files)
    while True:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = _open(folder)
        except FileNotFoundError:  # another process has just removed the empty cache
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not folder.is_dir():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_its(lock, folder) and not folder.is_dir():
                    _copy(files, folder)
                fcntl.flock(lock, fcntl.LOCK_SH)  # between the two, another may remove it
            if _is_its(lock, folder) and folder.is_dir():
                return lock, folder
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _copy(files: list[Path], folder: Path) -> None:
    with whole_folder(folder) as partial:
        for file in files:
            shutil.copy2(file, partial / file.name)


def _open(folder: Path) -> int:
    return os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)


def _is_its(lock: int, folder: Path) -> bool:
    """Whether the open file is still the lock of that copy: it is removed with it."""
    try:
        return os.path.samestat(os.fstat(lock), folder.with_suffix(".lock").stat())
    except FileNotFoundError:
        return False


def remove_unused(cache: Path) -> bool:
    """Remove the copies that nobody holds, and what was left of copies that were being made; then the folder.

    Returns:
        Whether nothing is left.
    """
    with suppress(FileNotFoundError):
        for name in {path.name.strip(".").partition(".")[0] for path in cache.iterdir()}:
            _remove_unheld(cache / name)
    with suppress(OSError):
        cache.rmdir()
    return not cache.exists()


def _remove_unheld(folder: Path) -> None:
    lock = _open(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_its(lock, folder):
            for path in (folder, *folder.parent.glob(f".{folder.name}.*")):
                shutil.rmtree(path, ignore_errors=True)
            folder.with_suffix(".lock").unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _key() -> str:
    return f"cirkd-staged-{this_call()}-"


def _note(cache: Path) -> None:
    """Let the call's driver know that this node has copies."""
    if ray.is_initialized():
        node = ray.get_runtime_context().get_node_id()
        internal_kv._internal_kv_put(f"{_key()}{node}", str(cache).encode())


@contextmanager
def unstaged() -> Iterator[None]:
    """Remove, at the end of the block, the copies that workers of this call took and nobody holds."""
    try:
        yield
    finally:
        with suppress(Exception):  # what is left is removed by the next worker there
            tasks = []
            for key in internal_kv._internal_kv_list(_key()):
                cache = Path(internal_kv._internal_kv_get(key).decode())
                node = key.decode().rpartition("-")[2]
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_remove_soon)
                tasks.append(task.remote(cache))
                internal_kv._internal_kv_del(key)
            ray.get(tasks, timeout=60)


def _remove_soon(cache: Path) -> None:
    """The workers of a run that has ended may still live for a moment."""
    for _ in range(TRIES):
        if remove_unused(cache):
            return
        time.sleep(1)
