"""Where a data set's files lie: a folder of this machine, or what fsspec can reach.

`s3://` and `gs://` go through pyarrow's file systems, which Ray brings along; other protocols through what
fsspec knows of them.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from cirkd_ray.data.cache import DiskCache
from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.files import PASSING, write_bytes

T = TypeVar("T")
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
"""In pyarrow's errors of an S3 server: another try would get the same answer."""
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
            raise kind(f"{self.where(path)}: cannot be read ({_reason(error)})") from None

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
            raise DataError(f"{self.where(path)}: cannot be written ({_reason(error)})") from None

    def remove(self, path: str) -> None:
        try:
            (self.root / path).unlink()
        except OSError as error:
            raise DataError(f"{self.where(path)}: cannot be deleted ({_reason(error)})") from None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - a third of iterdir's time
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DataError(f"{self.where(folder)}: cannot be listed ({_reason(error)})") from None

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

    Credentials, endpoints and the like come from where the protocol's own tools take them: for S3 the AWS_...
    variables and files (AWS_ENDPOINT_URL for a server other than Amazon's).

    Args:
        url: the root, with its protocol.
        cache: where read files are kept; by default as the environment says.
        tries: how often a request is made before its error counts.
        pause: seconds before the second try; doubled each time.
    """

    def __init__(self, url: str, cache: DiskCache | None = None, tries: int = 5, pause: float = 1.0) -> None:
        self.url = self.place = url.rstrip("/")
        self.cache = DiskCache.from_environment() if cache is None else cache
        self.tries, self.pause = tries, pause
        self._connection: tuple[Any, str] | None = None

    def read(self, path: str, sha256: str = "") -> bytes:
        where = self.where(path)
        kept_as = f"{where}#{sha256}" if sha256 else where
        keeps = not path.endswith(_CHANGING)
        held = self.cache.get(kept_as) if keeps else None
        if held is not None:
            return held
        filesystem, root = self._open()
        data: bytes = self._try(lambda: filesystem.cat_file(f"{root}/{path}"), where)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{where}: differs from its checksum in the index (was it replaced meanwhile?)")
        if keeps:
            self.cache.put(kept_as, data)
        return data

    def write(self, path: str, data: bytes) -> None:
        filesystem, root = self._open()

        def put() -> None:
            if not _is_object_store(self.url):
                filesystem.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(f"{root}/{path}", data)

        self._try(put, self.where(path))
        self.cache.drop(self.where(path))

    def remove(self, path: str) -> None:
        filesystem, root = self._open()
        self._try(lambda: filesystem.rm_file(f"{root}/{path}"), self.where(path))
        self.cache.drop(self.where(path))

    def names(self, folder: str) -> list[str]:
        return list(self.stamps(folder))

    def stamps(self, folder: str) -> dict[str, tuple[int | None, int | None]]:
        filesystem, root = self._open()
        target = f"{root}/{folder}".rstrip("/")

        def listing() -> dict[str, tuple[int | None, int | None]]:
            filesystem.invalidate_cache(target)
            try:
                found = filesystem.ls(target, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            paths = {str(entry["name"]): (_size(entry), None) for entry in found}
            return {p.rstrip("/").rpartition("/")[2]: paths[p] for p in sorted(paths) if p != target}

        return self._try(listing, self.where(folder))

    def where(self, path: str) -> str:
        return f"{self.url}/{path}"

    def __getstate__(self) -> dict[str, Any]:
        # A connection belongs to its process: loader processes open their own.
        return {**self.__dict__, "_connection": None}

    def _open(self) -> tuple[Any, str]:
        """fsspec's filesystem and the root's path in it."""
        if self._connection is None:
            try:
                filesystem, root = _open_url(self.url)
            except (ImportError, ValueError) as error:
                raise DataError(f"{self.url}: {_reason(error)}") from None
            self._connection = filesystem, str(root).rstrip("/")
        return self._connection

    def _try(self, request: Callable[[], T], where: str) -> T:
        """The request's answer; errors that may pass are met by waiting, then are a `TransientError`."""
        for attempt in range(self.tries):
            try:
                return request()
            except (FileNotFoundError, PermissionError, NotImplementedError) as error:
                raise DataError(f"{where}: {_reason(error)}") from None
            except Exception as error:  # each protocol's library has exceptions of its own
                if any(code in str(error) for code in _REFUSED):
                    raise DataError(f"{where}: {_reason(error)}") from None
                if attempt + 1 == self.tries:
                    server = f" at {_s3_endpoint()}" if self.url.startswith("s3:") and _s3_endpoint() else ""
                    raise TransientError(f"{where}: {_reason(error)}{server} ({self.tries} tries)") from error
                time.sleep(self.pause * 2**attempt)
        raise AssertionError("unreachable")


def _is_object_store(url: str) -> bool:
    """Whether pyarrow opens it; such stores have no folders to make."""
    return url.startswith(("s3://", "gs://", "gcs://"))


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _open_url(url: str) -> tuple[Any, str]:
    """The file system behind a URL, by fsspec's interface, and the path in it."""
    import fsspec

    if not _is_object_store(url):
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    from fsspec.implementations.arrow import ArrowFSWrapper

    if url.startswith("s3://"):
        store = fs.S3FileSystem(endpoint_override=_s3_endpoint())
    else:
        store = fs.GcsFileSystem(retry_time_limit=timedelta(seconds=30))
    # Not one for all: it would keep the environment of its first use.
    return ArrowFSWrapper(store, skip_instance_cache=True), url.partition("://")[2]


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
            raise DataError(f"{storage.root}: cannot be made ({_reason(error)})") from None
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


def _reason(error: BaseException) -> str:
    """What an exception says, in one short line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0][:160]
