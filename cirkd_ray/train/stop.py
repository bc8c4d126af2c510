"""Stopping on a signal: the first makes runs write a checkpoint and end, the second leaves at once.

Ctrl-C (SIGINT) and SIGTERM, which is what schedulers and preempted machines send, do the same. The exit code
tells them apart.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cirkd_ray.errors import StorageError

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Of a command that a signal has stopped: 128 and the signal's number, as shells count."""
_ONE_REQUEST = {False: 0.3, True: 2.0}
"""Seconds in which signals are one request: `timeout` and schedulers signal a process and its group as well,
and torchrun (True) passes on what the terminal has sent to all."""


TEMPORARY: set[str] = set()
"""Folders that end with this process."""


def launched_by_torchrun() -> bool:
    """Whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def follows_another() -> bool:
    """Whether another of torchrun's ranks speaks for this one."""
    return launched_by_torchrun() and os.environ["RANK"] != "0"


class Stopped(Exception):
    """A run, or a command with its runs, ended before its end because it was asked to. Nothing failed.

    Attributes:
        code: the exit code; known once it has left `stoppable`.
        again: words that the command line needs to resume.
    """

    code = EXIT_CODES[signal.SIGTERM]
    again: tuple[str, ...] | None = None

    def line(self, words: Sequence[str]) -> str:
        """What to say: what was done, and the command line that continues.

        Args:
            words: of the command line that was stopped.
        """
        if self.again is None:
            return str(self)
        return f"{self}; {line_to_continue(words, self.again)}"


class Interrupted(Stopped):
    """Asked to stop while this rank alone waited for storage: the others cannot take part in a checkpoint."""


def line_to_continue(words: Sequence[str], again: Sequence[str]) -> str:
    """The command line that continues what `words` began; see `continued`."""
    program = "torchrun ... -m cirkd_ray" if launched_by_torchrun() else "cirkd"
    return f"continue with: {program} {shlex.join(continued(words, again))}"


def continued(words: Sequence[str], again: Sequence[str]) -> list[str]:
    """A command line with the words that make it resume what it began.

    Args:
        words: the command line; one that names the run to resume stays as it is.
        again: `--name NAME`, or that and `--resume`.
    """
    kept = [word for word in words if word not in ("--fresh", "--resume")]
    bare = [
        after is None or after.startswith("-")
        for word, after in zip(words, [*words[1:], None], strict=True)
        if word == "--resume"
    ]
    if any(word.startswith("--resume=") for word in words) or (bare and not bare[-1]):
        return list(words)
    if any(word == "--name" or word.startswith("--name=") for word in words):
        again = again[2:]
    return [*kept, *again]


def leave_at_once(code: int) -> NoReturn:
    """End the process without waiting for anything; only temporary files are removed."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress bar may have hidden the cursor
    for folder in (*TEMPORARY, multiprocessing.process.current_process()._config.get("tempdir")):  # type: ignore[attr-defined]
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


class _Request:
    """The stop that a signal asked this process for."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.code, self.time = 0, 0.0

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        code = EXIT_CODES[signal.Signals(number)]
        if self.asked.is_set():
            if time.monotonic() - self.time < _ONE_REQUEST[launched_by_torchrun()]:
                return
            leave_at_once(code)
        self.code, self.time = code, time.monotonic()
        self.asked.set()
        if not follows_another():
            os.write(2, b"cirkd: stopping after this step; a second signal leaves at once\n")


_request = _Request()


def asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _request.asked.is_set()


@contextmanager
def stoppable(*again: str) -> Iterator[None]:
    """Let the first signal of a command ask its runs to stop, instead of ending the process.

    Args:
        again: words that the command line needs to resume: `--name NAME`, or that and `--resume`.

    Raises:
        Stopped, StorageError: as what is inside raises them, with the words and the exit code.
    """
    _request.asked.clear()
    _request.code = 0
    with _handlers(_request.take):
        try:
            yield
        except Stopped as stopped:
            stopped.code, stopped.again = _request.code or stopped.code, again
            raise
        except StorageError as error:
            error.again = again
            raise
        finally:
            _request.asked.clear()


@contextmanager
def abandoned(done: Callable[[], str]) -> Iterator[None]:
    """For work that leaves nothing to resume: the first signal ends it, and says what was done.

    Raises:
        Stopped: at a signal.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        stopped = Stopped(done())
        stopped.code = EXIT_CODES[signal.Signals(number)]
        for each in EXIT_CODES:
            signal.signal(each, lambda again, frame: leave_at_once(128 + again))
        raise stopped

    with _handlers(leave):
        yield


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals for the length of the block; outside the main thread nobody can."""
    with kept_handlers():
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                signal.signal(number, handler)
        yield


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Put back the handlers of both signals at the end of the block: `ray.init` puts in its own."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def forwarded(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` once, in a thread, as soon as a stop is asked for within the block; at once where it was."""
    if asked():
        act()
        yield
        return
    over = threading.Event()

    def wait() -> None:
        while not over.is_set():
            if _request.asked.wait(0.2):
                act()
                return

    thread = threading.Thread(target=wait, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
