"""One folder of a working copy, such as a run's, and the same folder behind its URL.

A pass up uploads what has changed here, in such an order that whoever reads there, or goes on from there
after this machine is lost, finds nothing half made: what describes a run; lines of metrics; the exported
student and pages; checkpoints, each with its manifest last; files of events; results. Only then what is gone
here is deleted there.

Which of the two is right where they differ says the writer's mark, an object in the folder: the working copy
that wrote last is right, in all others the bucket is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from cirkd_ray.errors import TransientError
from cirkd_ray.files import write_text
from cirkd_ray.remote.copies import copy_id, scratch, url_of
from cirkd_ray.remote.store import Store, Token, token_of

STATE, LOCK, MARK = ".mirror.json", ".mirror.lock", ".writer.json"
MANIFEST = "manifest.json"
"""Of a checkpoint: uploaded when all else of it is there."""
LINES = (".jsonl", "log.txt")
"""Ends of the names of files that grow by lines."""
LOGS = ("log.txt", "log.jsonl")
"""Files to which the driver adds lines while workers on another machine do, too."""
_MARKS = ("result.json", "outcome.json", "failure.json")
_FIRST = (".yaml", "data.json", "data-files.json.gz", "teacher.txt")
_LEFT_OUT = ("checkpoint_manager_snapshot.json",)  # Ray Train's list, which a run does without
_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d )", re.MULTILINE)
"""The beginning of an entry of `log.txt`."""
_ROW = re.compile(r"^(?=\{)", re.MULTILINE)
_EVENTS = "events.out.tfevents"
_EVENTS_PACE = 1e6
"""Bytes a second: a file of events, which is uploaded whole, is not uploaded again sooner than that."""
_TRIES = 5
Stamp = list[int]
"""Bytes and time of change (ns) of a file of this machine."""
Wanted = Callable[[str], bool]


def everything(path: str) -> bool:
    """What goes on from a folder needs: all but what it only adds to."""
    return _EVENTS not in path


class Unit:
    """A folder of a working copy that is written by one process, or by several of one machine.

    Folders in it that have a mark of their own are units themselves, and no part of it.

    Args:
        folder: lies in a working copy.
        tries: of each request.
    """

    def __init__(self, folder: Path, tries: int = 1) -> None:
        found = url_of(folder)
        assert found is not None
        self.folder, self.url = folder, found
        self.store = Store(found, tries)
        self.known: dict[str, dict[str, Any]] = {}
        self.taken = False
        self.torn: set[str] = set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes of this machine from the folder's transfers for the length of the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            file = self.folder / STATE
            tree: dict[str, Any] = {"taken": False, "files": {}}
            if file.is_file():
                tree = json.loads(file.read_text())
            self.known, self.taken = tree["files"], tree["taken"]
            try:
                yield
            finally:
                self.save()

    def save(self) -> None:
        """Keep what is known; within `held`."""
        with suppress(OSError):  # a full disk: at worst, something is transferred again
            write_text(self.folder / STATE, json.dumps({"taken": self.taken, "files": self.known}))

    def writer(self) -> dict[str, Any] | None:
        """The mark: `copy`, `call`, `host`, `at`, `every`, `ended`; None where nobody has written."""
        for _ in range(_TRIES):
            found = self.store.read_if_there(MARK)
            try:
                return None if found is None else dict(json.loads(found))
            except ValueError:  # it was replaced while it was read
                time.sleep(0.2)
        raise TransientError(f"{self.store.where(MARK)}: changes while it is read")

    def is_mine(self, writer: dict[str, Any] | None) -> bool:
        """Whether this working copy is the one that is right; within `held`."""
        return self.taken and writer is not None and writer["copy"] == copy_id()

    def mark(self, **facts: Any) -> None:
        """Say that this working copy is right from now on."""
        self.store.write(MARK, json.dumps({"copy": copy_id(), **facts}).encode())

    def pull(self, mine: bool, wanted: Wanted = everything) -> None:
        """Fetch what is newer there and wanted; within `held`.

        Args:
            mine: whether this working copy is right.
            wanted: asked with the path of each file, below the folder.
        """
        there = self._there(wanted)
        for path, token in sorted(there.items(), key=lambda item: _rank(item[0])):
            known, here = self.known.get(path), self._stamp(path)
            changed = known is None or here != known["here"]
            newer = known is None or changed or known["there"] != list(token)
            if (known is None and here is None) or (not mine and newer):
                self._fetch(path, token, merge=here is not None and changed and path.endswith(LOGS))
        for path in [path for path in self.known if wanted(path) and path not in there]:
            del self.known[path]
            if not mine and not self._is_apart(path):
                (self.folder / path).unlink(missing_ok=True)

    def unsent(self) -> list[str]:
        """Files that have changed here since they were uploaded or fetched."""
        return [path for path, stamp in self._here().items() if self.known.get(path, {}).get("here") != stamp]

    def holds_more(self, writer: dict[str, Any] | None) -> bool:
        """Whether something would be lost here if what is there took its place; the log is joined instead."""
        found = self._here() if writer is None else self.unsent()
        return any(not path.endswith(LOGS) for path in found)

    def set_aside(self) -> Path:
        """Move the folder away: another machine went on, and what it holds is not there. Within `held`."""
        aside = scratch() / ".aside" / self.folder.relative_to(scratch())
        shutil.rmtree(aside, ignore_errors=True)
        for path in self._here():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).rename(aside / path)
        self.known, self.taken = {}, False
        return aside

    def push(self, whole: bool = True, between: Callable[[], None] = lambda: None) -> None:
        """Upload what has changed, then delete there what is gone here; within `held`.

        Args:
            whole: also files of events that were uploaded a moment ago.
            between: called before each upload.

        Raises:
            UserError: what is behind the URL cannot be written now; another pass goes on.
        """
        here = self._here()
        changed = [path for path, stamp in here.items() if self.known.get(path, {}).get("here") != stamp]
        if not whole:
            changed = [path for path in changed if not self._is_soon(path, here[path])]
        complete = True
        for group in _groups(changed, here):
            between()
            complete &= self.send(group)
        gone = [path for path in self.known if path not in here]
        for path in [path for path in gone if self._is_apart(path)]:
            gone.remove(path)
            del self.known[path]
        for path in sorted(gone, key=_rank, reverse=True) if complete and here else ():
            self.store.remove(path)
            del self.known[path]
            folder = path.rpartition("/")[0]
            if _checkpoint(path) and not any(known.startswith(f"{folder}/") for known in self.known):
                self.store.remove_folder(folder)  # what an object store keeps in its place

    def send(self, group: list[str]) -> bool:
        """Upload files that belong together; false where one was deleted meanwhile."""
        with ExitStack() as opened:
            files = []
            try:
                for path in group:
                    stamp = self._stamp(path)
                    files.append((path, stamp, opened.enter_context((self.folder / path).open("rb"))))
            except FileNotFoundError:
                return False
            for path, stamp, file in files:
                if path.endswith(LINES):
                    lines = file.read()
                    self.store.write(path, lines[: lines.rfind(b"\n") + 1])
                else:
                    self.store.write(path, file)
                self._note(path, stamp, self.store.token(path))
        return True

    def _fetch(self, path: str, token: Token, merge: bool) -> None:
        target = self.folder / path
        if merge:
            there, here = self.store.read(path).decode(), target.read_text(encoding="utf-8")
            # By the time, which is what an entry begins with.
            beginning, time_ends = (_ROW, 33) if path.endswith(".jsonl") else (_ENTRY, 19)
            entries = dict.fromkeys([*beginning.split(there), *beginning.split(here)])
            write_text(target, "".join(sorted(entries, key=lambda entry: entry[:time_ends])))
            return
        for _ in range(_TRIES):  # until nobody replaces it meanwhile
            self.store.fetch(path, target)
            before, token = token, self.store.token(path) or token
            if before == token and token[0] in (None, target.stat().st_size):
                break
        else:
            raise TransientError(f"{self.store.where(path)}: changes while it is read")
        with suppress(ValueError, OSError):  # where the store tells a time
            when = datetime.fromisoformat(token[1]).timestamp()
            os.utime(target, (when, when))
        self._note(path, self._stamp(path), token)

    def _note(self, path: str, here: Stamp | None, there: Token | None) -> None:
        self.known[path] = {"here": here, "there": list(there or ()), "at": time.time()}
        self.save()

    def _is_soon(self, path: str, stamp: Stamp) -> bool:
        known = self.known.get(path)
        return known is not None and _EVENTS in path and time.time() - known["at"] < stamp[0] / _EVENTS_PACE

    def _there(self, wanted: Wanted) -> dict[str, Token]:
        """The unit's files behind the URL."""
        found: dict[str, Token] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            names = self.store.names(folder)
            for name, entry in names.items() if not folder or MARK not in names else ():
                path = f"{folder}/{name}" if folder else name
                if _is_ours(path) and wanted(path):
                    if entry.get("type") == "directory":
                        folders.append(path)
                    else:
                        found[path] = token_of(entry)
        checkpoints = {_checkpoint(path) for path in found} - {""}
        self.torn = {folder for folder in checkpoints if f"{folder}/{MANIFEST}" not in found}
        return {path: token for path, token in found.items() if _checkpoint(path) not in self.torn}

    def remove_torn(self) -> None:
        """Delete what a lost machine has uploaded of a checkpoint; after a `pull` that looked there."""
        for folder in self.torn:
            self.store.remove_folder(folder)

    def _here(self) -> dict[str, Stamp]:
        """The unit's files on this machine."""
        found: dict[str, Stamp] = {}
        folders = [self.folder]
        while folders:
            with suppress(FileNotFoundError):  # deleted while it is looked at
                for path in folders.pop().iterdir():
                    relative = path.relative_to(self.folder).as_posix()
                    if not _is_ours(relative) or path.is_symlink():
                        continue
                    if path.is_dir():
                        folders += [] if (path / STATE).is_file() else [path]
                    elif (stamp := self._stamp(relative)) is not None:
                        found[relative] = stamp
        return found

    def _is_apart(self, path: str) -> bool:
        """Whether a file that was this unit's lies in a folder that has become a unit of its own."""
        return any((self.folder / above / STATE).is_file() for above in [*PurePosixPath(path).parents][:-1])

    def _stamp(self, path: str) -> Stamp | None:
        try:
            found = (self.folder / path).stat()
        except FileNotFoundError:
            return None
        return [found.st_size, found.st_mtime_ns]


def _is_ours(path: str) -> bool:
    """Whether a path is one of the folder's: no file that is not whole yet, and none outside of it."""
    parts = path.split("/")
    return not any(part.startswith(".") or not part for part in parts) and parts[-1] not in _LEFT_OUT


def _rank(path: str) -> tuple[int, str]:
    """The place of a file in the order of uploads."""
    folder, _, name = path.rpartition("/")
    if _checkpoint(path):
        return 4, f"{folder}/{'~' if name == MANIFEST else ''}{name}"
    if name.endswith(_FIRST):
        return 0, path
    if name.endswith(LINES):
        return 1, path
    if name in _MARKS:
        return 6, path
    if _EVENTS in name:
        return 5, path  # a machine that is about to be taken away has its checkpoint there first
    return (2 if name.endswith(".safetensors") else 3), path


def _checkpoint(path: str) -> str:
    """The folder of the checkpoint that a file is of; "" for other files."""
    folder = path.rpartition("/")[0]
    return folder if folder.rpartition("/")[2].startswith("step_") else ""


def _groups(changed: list[str], here: dict[str, Stamp]) -> Iterator[list[str]]:
    """The files to upload, in their order; those of a checkpoint together, and only when it is whole."""
    checkpoints: dict[str, list[str]] = {}
    for path in sorted(changed, key=_rank):
        rank, folder = _rank(path)[0], path.rpartition("/")[0]
        if rank < 4:
            yield [path]
        elif rank == 4 and f"{folder}/{MANIFEST}" in here:
            checkpoints.setdefault(folder, []).append(path)
    yield from (checkpoints[folder] for folder in sorted(checkpoints, reverse=True))
    yield from ([path] for path in sorted(changed, key=_rank) if _rank(path)[0] > 4)
