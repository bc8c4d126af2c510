"""Work in a working copy that is uploaded while it goes on: of a run, a sweep, a comparison, a report.

For a folder that is no working copy of a URL, all of this does nothing.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cirkd_ray.errors import ConfigError, StorageError, TransientError, UserError, first_line
from cirkd_ray.remote.copies import url_of
from cirkd_ray.remote.unit import LINES, Unit, Wanted, everything

Say = Callable[[str], None]
EVERY = 30.0
"""Seconds between two uploads, where nothing else is set."""
RETRY = 5.0
"""Seconds until an upload that failed is tried again, at most: the machine may soon be taken away."""
LEAVING = 20.0
"""Seconds to wait for storage at the end of work that has failed or was stopped, at most."""
_PAUSE = 2.0
_call = secrets.token_hex(8)


def this_call() -> str:
    """A number that all processes of one command share, on whichever machine."""
    return _call


def join_call(call: str) -> None:
    """Work for the command of which this is the number."""
    global _call
    _call = call


class Mirror:
    """A unit with a thread that uploads it; used through `mirrored`.

    Where another machine of the same command has taken the unit over, it fetches lines of metrics instead.

    Args:
        folder: of a working copy.
        every: seconds between two uploads.
        timeout: seconds to wait for storage, where that is needed.
        say: hears when storage is away, and that it is back; raises nothing.
    """

    def __init__(self, folder: Path, every: float, timeout: float, say: Say) -> None:
        self.unit, self.every, self.timeout, self.say = Unit(folder), every, timeout, say
        self.marked = self.away = 0.0
        self.handed, self._turn = False, threading.RLock()
        self._over, self._now = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def take(self, wanted: Wanted = everything) -> None:
        """Make the working copy what is behind the URL, and the one that is right from now on.

        Raises:
            ConfigError: another command is writing there.
            StorageError: what is behind the URL could not be read in time.
        """
        self._patiently(lambda: self._take(wanted))

    def hand_over(self) -> None:
        """Upload what there is, and leave the rest to a process that goes on, until `take`.

        Raises:
            StorageError: that was not possible in time.
        """
        with self._turn:
            self.handed = False
            self._patiently(self._push)
            self.handed = True

    def start(self) -> None:
        """Begin to upload in the background."""
        self._thread.start()

    def soon(self) -> None:
        """Do not wait for the next upload."""
        self._now.set()

    def flush(self) -> None:
        """Upload what there is now, in one try.

        Raises:
            StorageError: that was not possible.
        """
        with self._turn:
            self._push()

    def finish(self, timeout: float) -> None:
        """Upload all that there is, and let others write.

        Raises:
            StorageError: that was not possible in time; with what is not there.
            ConfigError: another command has taken the unit over.
        """
        self._over.set()
        self._now.set()
        self._thread.join()
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._push(ended=True)
            except ConfigError:  # another try would not succeed
                raise
            except UserError as error:
                if time.monotonic() > deadline:
                    raise self._unfinished(error) from None
                self._tell(error)
                time.sleep(min(_PAUSE, timeout))

    def _take(self, wanted: Wanted) -> None:
        unit = self.unit
        self._wait_for_others()
        with unit.held():
            writer = unit.writer()
            mine = unit.is_mine(writer)
            if not mine and unit.holds_more(writer):
                aside = unit.set_aside()
                self.say(f"{unit.url}: is newer than what is here, which holds more; that is now in {aside}")
            unit.pull(mine, wanted)
            if not mine:
                unit.remove_torn()
            unit.taken, self.handed = True, False
            self._mark()

    def _wait_for_others(self) -> None:
        """Wait for the mark of a process that was lost to grow old.

        Raises:
            ConfigError: it is renewed meanwhile.
        """
        begun = time.monotonic()
        first = writer = self.unit.writer()
        while writer is not None and not writer["ended"] and writer["call"] != _call:
            # By this machine's clock alone where the other one's is ahead.
            age = max(time.time() - writer["at"], time.monotonic() - begun)
            with self.unit.held():
                if self.unit.is_mine(writer) or age > max(60.0, 4 * writer["every"]):
                    return  # of the same machine: a lock on the folder says whether that process lives
            if first is None or writer["at"] != first["at"]:
                raise ConfigError(
                    f"{self.unit.url}: a command on {writer['host']} is writing there; wait for it or end it"
                )
            if writer is first:
                host = writer["host"]
                self.say(
                    f"{self.unit.url}: {host} wrote there {age:.0f} s ago; waiting whether it still does"
                )
            time.sleep(_PAUSE)
            writer = self.unit.writer()

    def _push(self, ended: bool = False, whole: bool = True) -> None:
        unit = self.unit
        with unit.held():
            writer = unit.writer()
            if writer is None and unit.taken and not self.handed:  # all was deleted there: once more
                unit.known.clear()
            elif not unit.is_mine(writer):
                self._require_this_call(writer)
                if not ended:
                    unit.pull(False, lambda path: path.endswith(LINES))
                return
            if ended or not self.handed:
                unit.push(whole, self._renew)
                self._mark(ended) if ended else self._renew()

    def _require_this_call(self, writer: dict[str, Any] | None) -> None:
        """Refuse to go on where another command writes.

        Raises:
            ConfigError: so it is.
        """
        if writer is None or writer["call"] != _call:
            who = f"a command on {writer['host']} has taken it over" if writer else "has been deleted"
            raise ConfigError(
                f"{self.unit.url}: {who};\n"
                f"what is written here from now on is not uploaded, it stays in {self.unit.folder}"
            )

    def _renew(self) -> None:
        """Let others see that this command lives."""
        if time.monotonic() - self.marked > self.every:
            self._mark()

    def _mark(self, ended: bool = False) -> None:
        host, at = socket.gethostname(), time.time()
        self.unit.mark(call=_call, host=host, at=at, every=self.every, ended=ended)
        self.marked = time.monotonic()

    def _follow(self) -> None:
        while not self._over.is_set():
            self._now.wait(min(self.every, RETRY) if self.away else self.every)
            self._now.clear()
            if self._over.is_set():
                return
            try:
                with self._turn:
                    self._push(whole=False)
            except Exception as error:  # whatever it is, the next turn may succeed, and the end will say it
                self._tell(error)
            else:
                self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        """Say once that storage is away, and that it is back."""
        now = time.monotonic()
        if error is not None and not self.away:
            self.away = now
            later = "" if isinstance(error, ConfigError) else ", and what it writes is uploaded later"
            self.say(f"WARNING: {first_line(error)}; the work goes on{later}")
        elif error is None and self.away:
            self.say(f"{self.unit.url}: is reached again after {now - self.away:.0f} s; all is uploaded")
            self.away = 0.0

    def _patiently(self, act: Callable[[], None]) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                act()
            except TransientError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{self.unit.url}: cannot be reached ({first_line(error)});\n"
                        "mend that, then the same command goes on"
                    ) from None
                self._tell(error)
                time.sleep(min(_PAUSE, self.timeout or _PAUSE))
            else:
                return self._tell(None)

    def _unfinished(self, error: Exception) -> StorageError:
        with self.unit.held():
            left = self.unit.unsent()
        if not left:
            return StorageError(
                f"{self.unit.url}: all is uploaded, but it could not be marked as ended ({error});\n"
                "until that is old, a few minutes, no other command can write there"
            )
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        return StorageError(
            f"{self.unit.url}: {len(left)} files are not uploaded ({', '.join(left[:3])}{more}): {error};\n"
            f"they are in {self.unit.folder}; mend that, then the same command uploads them"
        )


_running: dict[Path, Mirror] = {}
"""Of this process, by folder."""


@contextmanager
def mirrored(
    folder: Path, every: float, timeout: float, say: Say, wanted: Wanted = everything
) -> Iterator[None]:
    """Fetch a working copy's folder, upload what the block writes there, and all of it at the end.

    Args:
        folder: any; nothing happens where it is no working copy.
        every, timeout, say: as of `Mirror`.
        wanted: as of `Unit.pull`.

    Raises:
        ConfigError, StorageError: as of `Mirror.take` and `Mirror.finish`.
    """
    if url_of(folder) is None or folder in _running:
        yield
        return
    mirror = Mirror(folder, every, timeout, say)
    mirror.take(wanted)
    _running[folder] = mirror
    mirror.start()
    try:
        yield
    except BaseException:
        with suppress(Exception):
            say_unfinished(mirror, min(timeout, LEAVING), say)
        raise
    else:
        mirror.finish(timeout)
    finally:
        del _running[folder]


def say_unfinished(mirror: Mirror, timeout: float, say: Say) -> None:
    """Finish; where that is not possible, only say so: the error that ends the work is the one to raise."""
    try:
        mirror.finish(timeout)
    except (ConfigError, StorageError) as error:
        say(f"WARNING: {error}")


def send(path: Path) -> None:
    """Upload one file of a working copy that is written by itself, such as an exported network.

    Raises:
        DataError: it cannot be uploaded.
    """
    if url_of(path) is not None:
        unit = Unit(path.parent, tries=5)
        with unit.held():
            unit.send([path.name])


def hand_over(folder: Path) -> None:
    """Upload what a folder that is mirrored in this process holds now; others go on until it is retaken.

    Raises:
        StorageError: as of `Mirror.hand_over`.
    """
    if folder in _running:
        _running[folder].hand_over()


def soon(folder: Path) -> None:
    """Upload a folder that is mirrored in this process without waiting for its next turn."""
    if folder in _running:
        _running[folder].soon()


def flush(folder: Path) -> None:
    """Upload now, in one try, what a folder that is mirrored in this process holds.

    Raises:
        StorageError: that was not possible.
    """
    if folder in _running:
        _running[folder].flush()


def retake(folder: Path) -> None:
    """Fetch what another machine of this command has written to a folder that is mirrored in this process.

    Checkpoints are left there.

    Raises:
        StorageError: as of `Mirror.take`.
    """
    if folder in _running:
        _running[folder].take(lambda path: everything(path) and not path.startswith("checkpoints"))
