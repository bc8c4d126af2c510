"""A stop that was asked of a driver, told to all processes of its Ray job: trials, controllers and workers.

The request is a key in the store of the cluster's head. Unlike a file it is seen at once on every node.
"""

from __future__ import annotations

import time

import ray
from ray.experimental import internal_kv

EVERY = 0.5
"""Seconds between two looks of a process."""


def _key(name: str = "") -> str:
    return f"cirkd-stop-{ray.get_runtime_context().get_job_id()}-{name}"


def ask_to_stop() -> None:
    """Ask all runs of this job to write a checkpoint and end."""
    internal_kv._internal_kv_put(_key(), b"1")


def forget_stop() -> None:
    """Take the request back."""
    internal_kv._internal_kv_del(_key(), del_by_prefix=True)


def stop_is_asked() -> bool:
    """Whether this process's job was asked to stop."""
    return bool(internal_kv._internal_kv_exists(_key()))


def note_stopped(trial: str) -> None:
    """Let the driver know that a trial's run has stopped."""
    internal_kv._internal_kv_put(_key(trial), b"1")


def has_stopped(trial: str) -> bool:
    """Whether `note_stopped` was called for it."""
    return bool(internal_kv._internal_kv_exists(_key(trial)))


class StopWatch:
    """`stop_is_asked` for a question before every step: it looks every half second at most."""

    def __init__(self) -> None:
        self.next, self.seen = 0.0, False

    def __call__(self) -> bool:
        """Whether a stop is asked for."""
        if not self.seen and time.monotonic() >= self.next:
            self.seen, self.next = stop_is_asked(), time.monotonic() + EVERY
        return self.seen
