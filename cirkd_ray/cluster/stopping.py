"""A stop that was asked of a driver, told to all processes of its call: trials, controllers and workers.

A call is one `cirkd` command. In a notebook that has started Ray itself, several may follow each other on one
Ray. Each has an id of its own, which its trials and workers are given. The request is a key in the store of
the cluster's head. Unlike a file it is seen at once on every node.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cirkd_ray.config import RunSpec
from cirkd_ray.remote import mirror
from cirkd_ray.remote.address import known_secrets, learn
from cirkd_ray.train.patience import patient_writes
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped, forwarded

EVERY = 0.5
"""Seconds between two looks of a process."""
PATIENCE = 5.0
"""Seconds after a stop is asked in which a run without workers may still begin, or end by itself."""

_call: ContextVar[str] = ContextVar("call", default="")


@contextmanager
def one_call() -> Iterator[None]:
    """A new call for the length of the block; a stop that is asked of this process is told to all of it."""
    call = f"{mirror.this_call()}-{secrets.token_hex(8)}"
    addresses = f"cirkd-addresses-{call}"
    internal_kv._internal_kv_put(addresses, json.dumps(known_secrets()).encode())
    try:
        with part_of(call), forwarded(in_this_call(ask_to_stop)):
            yield
    finally:
        with suppress(Exception):  # the head may be gone, and with it what it kept
            internal_kv._internal_kv_del(addresses)


@contextmanager
def part_of(call: str) -> Iterator[None]:
    """Take part in a call for the length of the block: that of the process that sent the work."""
    before = _call.get()
    _call.set(call)
    _join(call)
    try:
        yield
    finally:
        _call.set(before)


@cache
def _join(call: str) -> None:
    """Write to URLs as this call's command does, with what its URLs are opened with."""
    mirror.join_call(call.partition("-")[0])
    if ray.is_initialized() and (found := internal_kv._internal_kv_get(f"cirkd-addresses-{call}")):
        learn(json.loads(found))


def this_call() -> str:
    """The id of the call that this thread works for; "" outside of any."""
    return _call.get()


def in_this_call(act: Callable[[], Any]) -> Callable[[], Any]:
    """`act` for another thread, where it still belongs to this thread's call."""
    return partial(copy_context().run, act)


def _key(name: str = "") -> str:
    return f"cirkd-stop-{_call.get()}-{name}"


def _put(name: str = "") -> None:
    internal_kv._internal_kv_put(_key(name), b"1")


def _is_there(name: str = "") -> bool:
    return bool(internal_kv._internal_kv_exists(_key(name)))


def ask_to_stop() -> None:
    """Ask all runs of this call to write a checkpoint and end."""
    _put()


def stop_is_asked() -> bool:
    """Whether this call was asked to stop."""
    return _is_there()


def note_stopped(trial: str) -> None:
    """Let the driver know that a trial's run has stopped."""
    _put(f"trial-{trial}")


def has_stopped(trial: str) -> bool:
    """Whether `note_stopped` was called for it."""
    return _is_there(f"trial-{trial}")


@contextmanager
def patient_start(folder: Path, spec: RunSpec) -> Iterator[None]:
    """Wait, for the length of the block, where what begins one run of this call in `folder` cannot be
    written."""

    def say(text: str) -> None:
        with suppress(OSError):
            RunDirectory(folder).log(text)

    with patient_writes(folder, spec.cluster.storage_timeout, say, StopWatch()):
        yield


@contextmanager
def uploaded_run(directory: RunDirectory, spec: RunSpec) -> Iterator[None]:
    """Work in a run's directory, for the length of the block, in a process of its own.

    Behind a URL, what is there is fetched, and what the block writes is uploaded; what workers on other
    machines have written is fetched when they have ended.
    """

    def say(text: str) -> None:
        with suppress(OSError):
            directory.log(text)

    cluster = spec.cluster
    with mirror.mirrored(directory.path, cluster.upload_every, cluster.storage_timeout, say):
        yield


class StopWatch:
    """A question before every step that looks every half second at most.

    Args:
        asked: the question; by default `stop_is_asked`.
    """

    def __init__(self, asked: Callable[[], bool] | None = None) -> None:
        self.asked, self.next, self.seen = asked or stop_is_asked, 0.0, False

    def __call__(self) -> bool:
        """Whether it was ever answered with yes."""
        if not self.seen and time.monotonic() >= self.next:
            self.seen, self.next = self.asked(), time.monotonic() + EVERY
        return self.seen


class StartNoStopped(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in a run's controller: starts no workers once a stop is asked, and notes whether workers run.

    Args:
        call: of the driver.
        run: the run's directory.
    """

    def __init__(self, call: str, run: str) -> None:
        self.call, self.run = call, run

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """An exception here is Ray Train's way to give up."""
        with part_of(self.call):
            if stop_is_asked():
                raise Stopped("asked to stop before workers began")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """They look for a stop themselves now."""
        with part_of(self.call):
            _put(f"works-{self.run}")

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Others may be started, or waited for."""
        with part_of(self.call):
            internal_kv._internal_kv_del(_key(f"works-{self.run}"))


def has_workers(run: str) -> bool:
    """Whether workers of the run in this directory have begun and not ended; they stop by themselves."""
    return _is_there(f"works-{run}")


def interruptible(act: Callable[[], Any], busy: Callable[[], bool] = lambda: False) -> Any:
    """What `act` returns, called in a thread: in the main thread Ray Train would take Ctrl-C for itself.

    Args:
        act: may wait for places on the cluster, without end.
        busy: whether it will end by itself after a stop is asked.

    Raises:
        Stopped: a stop is asked and it has not been `busy` for `PATIENCE` seconds; it is left behind.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            result = act()
        except BaseException as error:
            with suppress(InvalidStateError):
                done.set_exception(error)
        else:
            with suppress(InvalidStateError):
                done.set_result(result)

    def watch() -> None:
        since, asked = time.monotonic(), StopWatch()
        while not done.done():
            time.sleep(EVERY)
            waits = False
            with suppress(Exception):  # the head may be away; what waits for it says so
                waits = asked() and not busy()
            if not waits:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                with suppress(InvalidStateError):
                    done.set_exception(Stopped("stopped while it waited for the cluster"))

    for work in (run, watch):
        threading.Thread(target=in_this_call(work), name=work.__name__, daemon=True).start()
    return done.result()
