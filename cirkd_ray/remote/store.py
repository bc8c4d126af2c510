"""Requests to what lies behind a URL: tried again where they may succeed, errors in one line.

`s3://` and `gs://` go through pyarrow's file systems, which Ray brings along; other protocols through what
fsspec knows of them.

Credentials, endpoints and the like come from where the protocol's own tools take them: for S3 the AWS_...
variables and files (AWS_ENDPOINT_URL for a server other than Amazon's).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.files import partial_name, whole_file
from cirkd_ray.remote.address import shown, with_secrets
from cirkd_ray.remote.address import url as without_secrets

T = TypeVar("T")
Token = tuple[int | None, str]
"""Bytes of a file and what else changes with it: its time, or its digest."""
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET")
"""In pyarrow's errors of an S3 server: another try would get the same answer."""
_WHOLE = ("s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory")
"""Protocols whose writes are whole or not there, and which have no folders to make."""
_STAMPS = ("etag", "ETag", "md5Hash", "mtime", "last_modified", "LastModified", "modified", "created")
_FRACTION = re.compile(r"\.\d+")
_BLOCK = 8_000_000


class Store:
    """Files below a URL, by paths relative to it with `/` between parts.

    Args:
        url: the root, with its protocol.
        tries: how often a request is made before its error counts.
        pause: seconds before the second try; doubled each time.

    Attributes:
        url: without secrets.
    """

    def __init__(self, url: str, tries: int = 5, pause: float = 1.0) -> None:
        self.url = without_secrets(url) or url.rstrip("/")
        self.tries, self.pause = tries, pause
        self._connection: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A connection belongs to its process: loader processes open their own.
        return {**self.__dict__, "_connection": None}

    def where(self, path: str) -> str:
        """The path in full, for messages."""
        return f"{self.url}/{path}" if path else self.url

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            DataError: it is not there or cannot be read.
            TransientError: it could not be read now; another try may succeed.
        """
        filesystem, place = self._at(path)
        found: bytes = self.attempt(lambda: filesystem.cat_file(place), path)
        return found

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to this machine, whole or not at all; errors as of `read`."""
        filesystem, place = self._at(path)
        with whole_file(target, durable=False) as partial:
            self.attempt(lambda: filesystem.get_file(place, str(partial)), path)

    def read_if_there(self, path: str) -> bytes | None:
        """The same; None where there is no such file."""
        return None if self.token(path) is None else self.read(path)

    def write(self, path: str, content: bytes | BinaryIO) -> None:
        """Make or replace a file: whole, or not at all.

        Args:
            path: the file.
            content: bytes, or an open file, from its beginning.

        Raises:
            DataError, TransientError: as of `read`.
        """
        filesystem, place = self._at(path)
        first = place if self._writes_whole() else str(partial_name(Path(place)))

        def put() -> None:
            if first != place:
                filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
            if isinstance(content, bytes):
                filesystem.pipe_file(first, content)
            else:
                content.seek(0)
                with filesystem.open(first, "wb") as target:
                    shutil.copyfileobj(content, cast(BinaryIO, target), _BLOCK)
            if first != place:
                filesystem.mv(first, place)

        self.attempt(put, path)

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        filesystem, place = self._at(path)

        def remove() -> None:
            try:
                filesystem.rm_file(place)
            except FileNotFoundError:
                return

        self.attempt(remove, path)

    def remove_folder(self, path: str) -> None:
        """Delete a folder with all that is left in it, if it is there."""
        filesystem, place = self._at(path)

        def remove() -> None:
            try:
                filesystem.rm(place, recursive=True)
            except FileNotFoundError:
                return

        self.attempt(remove, path)

    def names(self, folder: str = "") -> dict[str, Mapping[str, Any]]:
        """Name -> fsspec's description of what lies directly in a folder, sorted; none in one that is not."""
        filesystem, place = self._at(folder)

        def listing() -> dict[str, Mapping[str, Any]]:
            filesystem.invalidate_cache(place)
            try:
                found = filesystem.ls(place, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            paths = {str(entry["name"]): entry for entry in found}
            return {p.rstrip("/").rpartition("/")[2]: paths[p] for p in sorted(paths) if p != place}

        return self.attempt(listing, folder)

    def token(self, path: str) -> Token | None:
        """That of one file; None where it is not there."""
        filesystem, place = self._at(path)

        def look() -> Token | None:
            filesystem.invalidate_cache(place.rpartition("/")[0])
            try:
                return token_of(filesystem.info(place))
            except FileNotFoundError:
                return None

        return self.attempt(look, path)

    def attempt(self, request: Callable[[], T], path: str) -> T:
        """A request's answer; errors that may pass are met by waiting, then are a `TransientError`."""
        where = self.where(path)
        for attempt in range(self.tries):
            try:
                return request()
            except (FileNotFoundError, PermissionError, NotImplementedError) as error:
                raise DataError(f"{where}: {reason(error)}") from None
            except Exception as error:  # each protocol's library has exceptions of its own
                if any(code in str(error) for code in _REFUSED):
                    raise DataError(f"{where}: {reason(error)}") from None
                if attempt + 1 == self.tries:
                    server = f" at {_s3_endpoint()}" if self.url.startswith("s3:") and _s3_endpoint() else ""
                    raise TransientError(f"{where}: {reason(error)}{server} ({self.tries} tries)") from None
                time.sleep(self.pause * 2**attempt)
        raise AssertionError("unreachable")

    def connection(self) -> tuple[Any, str]:
        """fsspec's filesystem and the root's path in it.

        Raises:
            DataError: nothing that is installed knows the protocol.
        """
        if self._connection is None:
            try:
                filesystem, root = _open_url(with_secrets(self.url))
            except (ImportError, ValueError, OSError) as error:
                raise DataError(f"{self.url}: {reason(error)}") from None
            self._connection = filesystem, str(root).rstrip("/")
        return self._connection

    def _at(self, path: str) -> tuple[Any, str]:
        filesystem, root = self.connection()
        return filesystem, f"{root}/{path}" if path else root

    def _writes_whole(self) -> bool:
        return self.url.partition("://")[0] in _WHOLE


def reason(error: BaseException) -> str:
    """What an exception says, in one short line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(text.splitlines()[0])[:160]


def token_of(entry: Mapping[str, Any]) -> Token:
    """The token in one of fsspec's descriptions of a file."""
    size, key = entry.get("size"), next((key for key in _STAMPS if entry.get(key)), "")
    stamp = str(entry.get(key, ""))  # pyarrow's: some requests tell fractions of a second, others do not
    return None if size is None else int(size), _FRACTION.sub("", stamp) if key == "mtime" else stamp


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _open_url(url: str) -> tuple[Any, str]:
    """The file system behind a URL, by fsspec's interface, and the path in it."""
    import fsspec

    if not url.startswith(("s3://", "gs://", "gcs://")):
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    path = url.partition("://")[2]
    if "?" in url or "@" in path.partition("/")[0]:
        store, path = fs.FileSystem.from_uri(url)
    elif url.startswith("s3://"):
        # Small files by one request each, not by three.
        store = fs.S3FileSystem(endpoint_override=_s3_endpoint(), allow_delayed_open=True)
    else:
        store = fs.GcsFileSystem(retry_time_limit=timedelta(seconds=30))
    # Not one for all: it would keep the environment of its first use.
    return ArrowFSWrapper(store, skip_instance_cache=True), path
