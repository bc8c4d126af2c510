"""Files and folders that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, cast

from cirkd_ray.errors import ConfigError

PASSING = frozenset(
    getattr(errno, name)
    for name in (
        # full, or taken away from writers after a fault
        *("ENOSPC", "EDQUOT", "EROFS"),
        # away
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ENODEV", "ENXIO"),
        *("EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)
"""Errors of a file system that may pass: somebody makes room, or the server or the mount comes back."""


def stays_inside(name: str) -> bool:
    """Whether a name that comes from an archive, a list or an index stays in the folder that it is put in."""
    return not (name.startswith("/") or ".." in name.split("/") or "\0" in name)


def partial_name(path: Path) -> Path:
    """A place beside `path` for what is not whole yet; no other process on any node takes the same."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Write to the path that this yields; it takes the place of `path` at the end, in one step.

    Where the writing fails, `path` stays as it was and nothing is left beside it. Folders are made.

    Args:
        durable: wait until the disk has the content; not needed for the many files that can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        if durable:
            _flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill the new folder that this yields; it takes the place of `path` at the end.

    Where the filling fails, `path` stays as it was and nothing is left beside it.
    """
    partial = partial_name(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


Act = Callable[[], None]
_writer: ContextVar[Callable[[Act], None]] = ContextVar("writer", default=lambda act: act())


@contextmanager
def written_by(writer: Callable[[Act], None]) -> Iterator[None]:
    """Let `writer` call what writes a file, for the length of the block and in this thread; it may do so
    again where that fails."""
    before = _writer.get()
    _writer.set(writer)
    try:
        yield
    finally:
        _writer.set(before)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step, so that a reader or a crash never sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """The same for bytes; `durable` as in `whole_file`."""

    def write() -> None:
        with whole_file(path, durable) as partial:
            partial.write_bytes(content)

    _writer.get()(write)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file of lines: whole, or not at all; a torn line that a lost process left is dropped.

    Args:
        path: the file; several processes may append to it.
        line: without its end.
    """
    content = f"{line}\n".encode()
    with cast(BinaryIO, path.open("ab+", buffering=0)) as file:
        _drop_torn_line(file)
        try:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
        except BaseException:
            with suppress(OSError):  # the next to append does it
                _drop_torn_line(file)
            raise


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut an unbuffered file off after its last end of a line."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        end = start if found < 0 else start + found + 1
        if found >= 0:
            break
    if end < size:
        file.truncate(end)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into an error of the user's.

    Raises:
        ConfigError: the disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None


def save_text(path: Path, text: str) -> None:
    """`write_text` for a file that the user asked for.

    Raises:
        ConfigError: the disk is full or not writable.
    """
    with told(path):
        write_text(path, text)


def size_text(count: float) -> str:
    """Bytes as people read them: `12.3 MB`."""
    units = ["TB", "GB", "MB", "kB", "B"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{count:.3g} {units[-1]}"


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def plain_json(value: Any) -> Any:
    """The same value with None (`null`) for each number that is not finite: JSON has no word for those."""
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where there is no such file.

    Raises:
        ConfigError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is damaged; delete it, or the folder of its run, and go on")
    return found


def remove_old(*paths: Path) -> None:
    """Delete the results of an earlier call before they are made again: a failure then leaves none of them.

    Raises:
        ConfigError: one of them cannot be deleted.
    """
    for path in paths:
        with told(path):
            path.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Look, before long work, whether its results can be written to a folder that may have to be made.

    Raises:
        ConfigError: they cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{folder}: cannot be written ({there} is a file); choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written ({there} is read-only); choose another folder")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
