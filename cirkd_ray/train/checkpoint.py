"""Complete checkpoints that are either whole or absent.

A checkpoint is a folder `step_00000800` with `state.pt` (plain tensors and numbers, readable with
`torch.load(weights_only=True)`) and `manifest.json` (step, bytes, SHA-256 of `state.pt`). It is written
under another name and renamed when complete, and checked against its manifest before it is used, so a
damaged one is passed over for the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from cirkd_ray.errors import CheckpointError
from cirkd_ray.files import whole_folder
from cirkd_ray.remote.reading import whole_folders

STATE, MANIFEST = "state.pt", "manifest.json"
PART = 32_000_000
"""Bytes of a state that are given to the disk at a time."""
Warn = Callable[[str], None]


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` optimiser steps."""
    return f"step_{step:08d}"


def write_checkpoint(folder: Path, state: dict[str, Any], written: Callable[[], None] = lambda: None) -> Path:
    """Write `state` into a new folder `folder`; nothing is left behind when that fails.

    Args:
        folder: the checkpoint's.
        state: what it holds.
        written: called whenever the disk has taken another part of it.

    Raises:
        OSError: the disk is full or not writable; what was there before stays as it is.
    """
    import torch  # here and below: those that only look at checkpoints do without

    with whole_folder(folder) as partial:
        with (partial / STATE).open("wb") as file:
            hashing = _Hashing(file, written)
            try:
                torch.save(state, cast(BinaryIO, hashing))
            except RuntimeError:  # torch's word for a failed write
                if hashing.error is None:
                    raise
                raise hashing.error from None
        manifest = {"step": int(state["step"]), "bytes": hashing.bytes, "sha256": hashing.sha.hexdigest()}
        (partial / MANIFEST).write_text(json.dumps(manifest))
    with contextlib.suppress(OSError):
        _LOOKED_AT[folder] = (_version(folder), None)
    return folder


class _Hashing:
    """A file that is only written, in order; its checksum is known at the end without reading it.

    The disk takes it part by part, so that a slow one is told from one that hangs.
    """

    def __init__(self, file: BinaryIO, written: Callable[[], None]) -> None:
        self.file, self.sha, self.bytes = file, hashlib.sha256(), 0
        self.written, self.unflushed = written, 0
        self.error: OSError | None = None

    def write(self, block: bytes) -> int:
        view = memoryview(block).cast("B")
        for start in range(0, len(view), PART):
            self._write(view[start : start + PART])
        return len(view)

    def _write(self, part: memoryview) -> None:
        self.sha.update(part)
        self.bytes += len(part)
        self.unflushed += len(part)
        try:
            self.file.write(part)
            if self.unflushed >= PART:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.unflushed = 0
                self.written()
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def complaint(folder: Path) -> str | None:
    """Why the checkpoint in `folder` cannot be used, or None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        size = (folder / STATE).stat().st_size
        if size != manifest["bytes"]:
            return f"truncated ({size} of {manifest['bytes']} bytes)"
        if _sha256(folder / STATE) != manifest["sha256"]:
            return "damaged (its checksum differs)"
    except FileNotFoundError as error:
        return f"incomplete ({Path(str(error.filename)).name} is missing)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, newest first, whole or not."""
    return sorted((p for p in folder.glob("step_*") if p.is_dir()), key=lambda p: p.name, reverse=True)


def last_step(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 without one. Another machine's is known by its upload."""
    newest = newest_checkpoint(folder, lambda text: None)
    here = 0 if newest is None else int(json.loads((newest / MANIFEST).read_text())["step"])
    there = whole_folders(folder, MANIFEST)
    return max(here, *(int(name[5:13]) for name in there if name.startswith("step_")), 0)


def newest_checkpoint(folder: Path, warn: Warn) -> Path | None:
    """The newest whole checkpoint; `warn` hears of every damaged one that is passed over."""
    for path in list_checkpoints(folder):
        problem = complaint(path)
        if problem is None:
            return path
        warn(f"checkpoint {path} is {problem}; it is passed over")
    return None


def checkpoint_of(folder: Path, step: int) -> Path | None:
    """The newest whole checkpoint of a step: where one is damaged, its step is trained and written again."""
    found = sorted(folder.glob(f"{checkpoint_name(step)}*"), reverse=True)
    return next((path for path in found if complaint(path) is None), None)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is damaged, or holds more than data.
    """
    import torch

    problem = complaint(folder)
    if problem is not None:
        raise CheckpointError(f"{folder}: the checkpoint is {problem}")
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{folder}: the checkpoint holds Python objects, whose loading could run any code: refused"
        ) from None
    return state


def none_is_whole(folder: Path) -> str | None:
    """Why a run cannot be resumed from any of these checkpoints; None where one is whole or there is none."""
    problems = []
    for path in list_checkpoints(folder):
        problem = complaint(path)
        if problem is None:
            return None
        problems.append(f"{path.name} is {problem}")
    if not problems:
        return None
    return (
        f"none of the run's {len(problems)} checkpoints is whole ({'; '.join(problems[:3])});\n"
        "put a good copy back, or start over at step 0 by the same command with --restart (or delete it)"
    )


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest whole checkpoints; where none is whole, none is deleted."""
    found = list_checkpoints(folder)
    if len(found) <= keep:
        return
    whole = set(islice((path for path in found if _looked_at(path) is None), keep))
    for path in found if whole else ():
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """`keep_newest`, and delete what interrupted writes left behind."""
    keep_newest(folder, keep)
    _remove_unfinished(folder)


def remove_partial_checkpoints(folder: Path) -> None:
    """Delete the checkpoints whose writing or upload was cut off: a file is missing or too short."""
    _remove_unfinished(folder)
    for path in list_checkpoints(folder):
        if (complaint(path) or "").startswith(("incomplete", "truncated")):
            shutil.rmtree(path, ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)


_LOOKED_AT: dict[Path, tuple[tuple[tuple[int, ...], ...], str | None]] = {}
"""What was found of checkpoints, and of which version of their files: hashing takes seconds where they are
large."""


def _version(folder: Path) -> tuple[tuple[int, ...], ...]:
    found = ((folder / name).stat() for name in (STATE, MANIFEST))
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in found)


def _looked_at(folder: Path) -> str | None:
    """`complaint`, once for its files as they are now; none for one that this process has written."""
    try:
        version = _version(folder)
    except OSError:
        return complaint(folder)
    before = _LOOKED_AT.get(folder)
    if before is None or before[0] != version:
        before = _LOOKED_AT[folder] = (version, complaint(folder))
    return before[1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
