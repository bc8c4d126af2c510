"""Holding the folder of a run, sweep or comparison: one process writes there, on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from cirkd_ray.config.spec import ClusterSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.mirror import mirrored
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped, asked


@contextmanager
def locked(
    directory: RunDirectory,
    cluster: ClusterSpec,
    say: Callable[[str], None],
    wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold a directory for this process; behind a URL, its working copy, which is uploaded meanwhile.

    Args:
        directory: of a run, sweep or comparison.
        cluster: how it is uploaded.
        say: hears what happens to storage.
        wait: wait for another process that runs there, as long as it takes, and call this first.

    Raises:
        ConfigError: another process runs there and there is no `wait`, or the folder cannot be written.
        StorageError: what is behind the URL cannot be read, or at the end not be written.
    """
    lock = FileLock(directory.path.parent / f".{directory.path.name}.lock")
    try:
        directory.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            if wait is None:
                raise
            wait()
            while not _acquired(lock):
                if asked():
                    raise Stopped("stopped before it began") from None
    except Timeout:
        raise ConfigError(
            f"{directory.path}: another process is running there; wait for it or end it first"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{directory.path}: cannot be written ({error.strerror}); choose another --out or --name"
        ) from None

    def tell(text: str) -> None:
        say(text)
        with suppress(OSError):
            directory.log(text)

    try:
        with mirrored(directory.path, cluster.upload_every, cluster.storage_timeout, tell):
            yield
    finally:
        lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=1)
    except Timeout:
        return False
    return True
