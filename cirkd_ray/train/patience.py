"""Waiting for storage: a disk that is full, a mount that is away, data that cannot be read for a while.

A run loses nothing by waiting, as what it writes is whole or not there and a sample is a function of its
number. It says what it waits for, and after `cluster.storage_timeout` it ends with what to do.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cirkd_ray.errors import StorageError, TransientError
from cirkd_ray.files import PASSING, free_bytes, size_text, written_by
from cirkd_ray.train.checkpoint import newest_checkpoint
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Interrupted, asked

T = TypeVar("T")
SLICE = 0.2
"""Seconds between two looks whether to go on waiting; the first pause before another try."""
LONGEST = 5.0
"""Seconds of a pause, at most, where a try takes no longer itself."""


class Patience:
    """Tries again what fails because of storage, until it succeeds or the time is over.

    Threads may use it at the same time. Where one of them gives up, all do.

    Args:
        timeout: seconds to wait; 0 for none.
        directory: the run's, whose disk is looked at.
        say: hears once that something is waited for, and that it is over; raises nothing.
        rest: called several times a second while it waits; what it raises ends the waiting.
        left: what is left in the end, and what to do then; of a run, its last checkpoint.
    """

    def __init__(
        self,
        timeout: float,
        directory: RunDirectory,
        say: Callable[[str], None],
        rest: Callable[[], None] = lambda: None,
        left: Callable[[], str] | None = None,
    ) -> None:
        self.left = left or self._last_checkpoint
        self.timeout, self.directory, self.say, self.rest = timeout, directory, say, rest
        self._holds_recipe = directory.recipe.is_file()
        self._lock, self._waiting, self._over = threading.Lock(), 0, threading.Event()

    def __call__(self, act: Callable[[], T]) -> T:
        """What `act` returns; it may be called several times.

        Raises:
            StorageError: it still cannot write or read when the time is over, or never will.
            TransientError: with a timeout of 0, as `act` raised it.
            Exception: any other of `act` and of `rest`.
        """
        begun = time.monotonic()
        try:
            return act()
        except (OSError, TransientError) as error:
            trouble, passing = self._trouble(error)
            if not passing or not self.timeout:
                raise self._failure(trouble) from error
        with self._told(trouble, begun):
            return self._wait(act, begun)

    def write(self, act: Callable[[], T]) -> T:
        """The same for what writes into the run's folder: not into another where its disk was mounted."""

        def guarded() -> T:
            if self._holds_recipe and not self.directory.recipe.is_file():
                raise OSError(
                    errno.ENODEV, "its files are gone; is its disk mounted?", str(self.directory.path)
                )
            return act()

        return self(guarded)

    def _wait(self, act: Callable[[], T], begun: float) -> T:
        pause = SLICE
        while True:
            again = time.monotonic() + pause
            while (now := time.monotonic()) < again:
                self.rest()
                time.sleep(min(SLICE, again - now))
            try:
                return act()
            except (OSError, TransientError) as error:
                trouble, passing = self._trouble(error)
                if not passing or self._over.is_set() or time.monotonic() - begun >= self.timeout:
                    self._over.set()
                    raise self._failure(trouble, time.monotonic() - begun) from error
            # A large checkpoint that fails late is not written without a break.
            pause = max(min(2 * pause, LONGEST), time.monotonic() - again)
            pause = min(pause, max(SLICE, begun + self.timeout - time.monotonic()))

    def _trouble(self, error: OSError | TransientError) -> tuple[str, bool]:
        """What is wrong in a few words, and whether it may pass."""
        if isinstance(error, TransientError):
            if not self.timeout:
                raise error
            return str(error).splitlines()[0], True
        if error.strerror is None or error.errno == errno.EPIPE:  # of a terminal that is closed
            raise error
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with suppress(OSError):
                free = f"; {size_text(free_bytes(self.directory.path))} are free on its disk"
        return (
            f"{self.directory.path}: cannot be written ({error.strerror}{free})",
            error.errno in PASSING,
        )

    @contextmanager
    def _told(self, trouble: str, begun: float) -> Iterator[None]:
        """Say what is waited for, and that it is over; of several threads, the first and the last."""
        with self._lock:
            self._waiting += 1
            first = self._waiting == 1
        if first:
            limit = f"{self.timeout:g} s (cluster.storage_timeout)"
            self.say(f"WARNING: {trouble}; waiting for it, up to {limit}")
        try:
            yield
        except BaseException:
            with self._lock:
                self._waiting -= 1
            raise
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if last:
            self.say(
                f"{trouble.partition(': ')[0]}: goes on after {time.monotonic() - begun:.0f} s of waiting"
            )

    def _failure(self, trouble: str, waited: float = 0.0) -> StorageError:
        after = f", and still not after {waited:.0f} s (cluster.storage_timeout)" if waited else ""
        place, _, what = trouble.partition(": ")
        return StorageError(f"{place}: {what}{after};\n{self.left()}")

    def _last_checkpoint(self) -> str:
        kept = None
        with suppress(OSError):
            kept = newest_checkpoint(self.directory.checkpoints, lambda text: None)
        last = f"the last whole checkpoint is {kept}" if kept else "no checkpoint has been written"
        return f"{last}; mend that, then continue with --resume"


@contextmanager
def patient_writes(
    folder: Path, timeout: float, say: Callable[[str], None], asked_to_stop: Callable[[], bool] = asked
) -> Iterator[None]:
    """Wait, for the length of the block, where a file of a sweep or comparison itself cannot be written.

    Args:
        folder: of the sweep or comparison.
        timeout, say: as of `Patience`.
        asked_to_stop: asked while it waits.

    Raises:
        StorageError, Interrupted: as of `Patience` and of a run.
    """

    def rest() -> None:
        if asked_to_stop():
            raise Interrupted("stopped while waiting for storage")

    left = "what has ended is kept; mend that, then the same command goes on"
    with written_by(Patience(timeout, RunDirectory(folder), say, rest, lambda: left)):
        yield
