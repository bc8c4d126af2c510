"""Where a data set's files lie: a folder of this machine, or what a `remote.Store` can reach."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirkd_ray.data.cache import DiskCache
from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.files import PASSING, write_bytes
from cirkd_ray.remote.store import Store, reason

_CHANGING = (".json", ".jsonl", ".yaml", ".txt")
"""Ends of the names of files that list or describe others: they may change, so they are never cached."""

_END = 2**21
"""Bytes of a large file, at its beginning and end, that tell it from another."""


class Storage(ABC):
    """The files below one root, by paths relative to it with `/` between parts.

    Attributes:
        place: the root in full.
    """

    place: str

    @abstractmethod
    def read(self, path: str, sha256: str = "") -> bytes:
        """The file's content.

        Args:
            path: the file.
            sha256: its checksum, where it is known; a cache then ignores an older file of that name.

        Raises:
            DataError: it is not there or cannot be read, or came over the network with another checksum.
            TransientError: it could not be read now; another try may succeed.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Make or replace the file: whole, or not at all (as object stores do it, too).

        Raises:
            DataError: it cannot be written.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file; raises a DataError where it is not there or cannot be deleted."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies directly in the folder; empty where there is no such folder."""

    @abstractmethod
    def stamps(self, folder: str) -> dict[str, tuple[int | None, int | None]]:
        """Bytes and time of change (ns) of each of the `names`, by one listing.

        Bytes are None where that does not say, as of folders; times are None behind a URL. On this machine,
        links that lead nowhere are left out.
        """

    def digest(self, path: str, size: object) -> str | None:
        """Sixteen digits of a file's content; of one whose size is large, of its two ends.

        None of a large one behind a URL.
        """
        if not isinstance(size, int) or size > 2 * _END:
            return None
        return hashlib.sha256(self.read(path)).hexdigest()[:16]

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Bytes of each of the `names`, as `stamps` tell them."""
        return {name: stamp[0] for name, stamp in self.stamps(folder).items()}

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Bytes of a file and when it was changed (ns); None where it is gone.

        None behind a URL, too, where asking takes as long as reading a small file.
        """
        return None

    def away(self, *paths: str) -> str | None:
        """The root, or the first folder of these files, that holds nothing now as its disk is not mounted.

        None where all hold something, and behind a URL, where a failed request tells it itself.
        """
        return None

    @abstractmethod
    def where(self, path: str) -> str:
        """The path in full, for messages."""


class LocalStorage(Storage):
    """A folder of this machine; nothing is cached, so checksums are not needed."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.place = str(self.root.absolute())

    def read(self, path: str, sha256: str = "") -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            kind = TransientError if error.errno in PASSING else DataError
            raise kind(f"{self.where(path)}: cannot be read ({reason(error)})") from None

    def digest(self, path: str, size: object) -> str | None:
        if not isinstance(size, int) or size <= 2 * _END:
            return super().digest(path, size)
        with (self.root / path).open("rb") as file:
            ends = file.read(_END)
            file.seek(size - _END)
            return hashlib.sha256(ends + file.read(_END)).hexdigest()[:16]

    def write(self, path: str, data: bytes) -> None:
        try:
            write_bytes(self.root / path, data, durable=False)
        except OSError as error:
            raise DataError(f"{self.where(path)}: cannot be written ({reason(error)})") from None

    def remove(self, path: str) -> None:
        try:
            (self.root / path).unlink()
        except OSError as error:
            raise DataError(f"{self.where(path)}: cannot be deleted ({reason(error)})") from None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - a third of iterdir's time
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"{self.where(folder)}: cannot be listed ({reason(error)})") from None

    def stamps(self, folder: str) -> dict[str, tuple[int | None, int | None]]:
        stamps = ((name, self.stamp(f"{folder}/{name}" if folder else name)) for name in self.names(folder))
        return {name: stamp for name, stamp in stamps if stamp is not None}

    def stamp(self, path: str) -> tuple[int, int] | None:
        try:
            found = os.stat(f"{self.root}/{path}")  # noqa: PTH116 - many files
            return found.st_size, found.st_mtime_ns
        except OSError:
            return None

    def away(self, *paths: str) -> str | None:
        for folder in dict.fromkeys(("", *(path.rpartition("/")[0] for path in paths))):
            try:
                with os.scandir(self.root / folder) as entries:
                    if next(entries, None) is not None:
                        continue
            except OSError:
                pass
            return self.where(folder)
        return None

    def where(self, path: str) -> str:
        return str(self.root / path)


class RemoteStorage(Storage):
    """Files behind a URL, read through a local cache (see `DiskCache`); failed requests are tried again.

    Lists and descriptions, which change while a data set is prepared, are read anew each time. A file whose
    checksum is known is cached under its checksum.

    Args:
        url: the root, with its protocol.
        cache: where read files are kept; by default as the environment says.
        tries, pause: as of `Store`.
    """

    def __init__(self, url: str, cache: DiskCache | None = None, tries: int = 5, pause: float = 1.0) -> None:
        self.store = Store(url, tries, pause)
        self.url = self.place = self.store.url
        self.cache = DiskCache.from_environment() if cache is None else cache

    def read(self, path: str, sha256: str = "") -> bytes:
        where = self.where(path)
        kept_as = f"{where}#{sha256}" if sha256 else where
        keeps = not path.endswith(_CHANGING)
        held = self.cache.get(kept_as) if keeps else None
        if held is not None:
            return held
        data = self.store.read(path)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{where}: differs from its checksum in the index (was it replaced meanwhile?)")
        if keeps:
            self.cache.put(kept_as, data)
        return data

    def write(self, path: str, data: bytes) -> None:
        self.store.write(path, data)
        self.cache.drop(self.where(path))

    def remove(self, path: str) -> None:
        self.store.remove(path)
        self.cache.drop(self.where(path))

    def names(self, folder: str) -> list[str]:
        return list(self.store.names(folder))

    def stamps(self, folder: str) -> dict[str, tuple[int | None, int | None]]:
        return {name: (_size(entry), None) for name, entry in self.store.names(folder).items()}

    def where(self, path: str) -> str:
        return f"{self.url}/{path}"


def open_storage(root: str | Path, create: bool = False) -> Storage:
    """The storage behind a root: a URL with a protocol, or a folder.

    Args:
        create: make the folder where it does not exist.

    Raises:
        DataError: there is no such folder, or it cannot be made.
    """
    protocol, separator, rest = str(root).partition("://")
    if separator and protocol not in ("file", "local"):
        return RemoteStorage(str(root))
    storage = LocalStorage(rest if separator else root)
    if create:
        try:
            storage.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{storage.root}: cannot be made ({reason(error)})") from None
    elif not storage.root.is_dir():
        kind = "is not a folder" if storage.root.exists() else "does not exist"
        raise DataError(f"data.root: {storage.root} {kind}")
    return storage


def printable(name: str) -> str:
    """The name with escapes for bytes that are no UTF-8, which terminals and sample files do not take."""
    return name.encode("utf-8", "backslashreplace").decode()


def _size(entry: Mapping[str, Any]) -> int | None:
    """Bytes of a file in one of fsspec's listings, where it says so."""
    size = entry.get("size")
    return int(size) if size is not None and entry.get("type") == "file" else None
