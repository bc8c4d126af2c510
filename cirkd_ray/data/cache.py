"""A bounded folder of files that came over the network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
import zlib
from pathlib import Path

from cirkd_ray.errors import ConfigError
from cirkd_ray.files import write_bytes

_CHECK = 4
_SCAN_SHARE = 64
_FULL_SHARE, _KEEP_SHARE = 0.75, 0.65


class DiskCache:
    """Keeps contents by name. Where they pass the limit, those go that were not used for longest.

    Several processes may share the folder. Each adds up the folder's files whenever it has added 1/64 of the
    limit, and makes room when they take 3/4 of it: so up to 16 processes stay below the limit. A damaged
    file counts as not there. A folder that cannot be written switches the cache off, with a warning.

    Contents are kept by name alone: after you replace files behind a URL, empty the folder. Samples of
    prepared sets need no such care: their checksum is part of the name.

    Args:
        folder: where the files are kept.
        limit: bytes that they may take; 0 keeps none.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._added = 0
        self._working = limit > 0

    @classmethod
    def from_environment(cls) -> DiskCache:
        """As CIRKD_CACHE (a folder) and CIRKD_CACHE_GB (20 by default) say.

        Raises:
            ConfigError: CIRKD_CACHE_GB is no number.
        """
        folder = os.environ.get("CIRKD_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/cirkd"
        size = os.environ.get("CIRKD_CACHE_GB") or "20"
        try:
            limit = int(float(size) * 1e9)
        except (ValueError, OverflowError):
            raise ConfigError(f"CIRKD_CACHE_GB: {size!r} is no number of gigabytes; write e.g. 20") from None
        return cls(os.path.expanduser(folder), limit)  # noqa: PTH111 - Path's raises where there is no home

    def get(self, name: str) -> bytes | None:
        """The content kept under that name, or None."""
        if not self._working:
            return None
        path = self._path(name)
        try:
            kept = path.read_bytes()
        except OSError:
            return None
        content = kept[:-_CHECK]
        if kept[-_CHECK:] != _checksum(content):
            _remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keep a content, unless it alone would fill a quarter of the cache."""
        if not self._working or len(content) > self.limit / 4:
            return
        try:
            write_bytes(self._path(name), content + _checksum(content), durable=False)
        except OSError as error:
            self._working = False
            warnings.warn(
                f"{self.folder}: cache switched off ({error.strerror}); CIRKD_CACHE names another",
                stacklevel=2,
            )
            return
        self._added += len(content)
        if self._added > self.limit / _SCAN_SHARE:
            self._added = 0
            self._shrink()

    def drop(self, name: str) -> None:
        """Forget the content kept under that name."""
        if self._working:
            _remove(self._path(name))

    def size(self) -> int:
        """Bytes that all files take."""
        return sum(size for _, size, _ in self._files())

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / key[:2] / key[2:]

    def _files(self) -> list[tuple[int, int, str]]:
        """(time of last use, bytes, path) of every file."""
        found = []
        for path in (f"{folder}/{name}" for folder, _, names in os.walk(self.folder) for name in names):
            with contextlib.suppress(OSError):  # another process removed it
                status = os.stat(path)  # noqa: PTH116 - many files
                found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _shrink(self) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= self.limit * _FULL_SHARE:
            return
        for _, size, path in files:
            if total <= self.limit * _KEEP_SHARE:
                break
            if _remove(Path(path)):
                total -= size


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECK, "little")


def _remove(path: Path) -> bool:
    """Remove a file; false where that is not allowed: in a shared folder it may belong to somebody else."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
