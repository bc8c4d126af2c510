"""Watching a run's workers: one that hangs is told, and ended after `cluster.hang_timeout`.

A run hangs when none of its workers gets on. One of them is the reason; the others wait for it in a
collective. Ray Train finds the worker that is ended here as it finds any that died, and starts the workers
again from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cirkd_ray.cluster import pulse
from cirkd_ray.cluster.pulse import Sign, born
from cirkd_ray.config import RunSpec
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.train.heartbeat import Beat
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stall import FLOOR, bound, lacks, looking

START = 120.0
"""Seconds that a start may take, however small `hang_timeout` is: busy machines are slow to import."""
SILENT = 5.0
"""Seconds without a sign after which a process counts as stopped."""
LOOK = 2.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Finding:
    """A run that hangs.

    Attributes:
        workers: those that are the reason, by all that is known; none where none has been placed.
        silent: whether their processes give no sign at all.
        seconds: since any worker got on.
        end: whether it is time to end them: those that give no sign, or else the first.
    """

    workers: tuple[Sign, ...]
    silent: bool
    seconds: float
    end: bool

    def text(self, timeout: float | None) -> str:
        """What to say."""
        if not self.workers:
            return (
                f"WARNING: workers: none has begun for {self.seconds:.0f} s; the cluster has no room for "
                "them yet, or a process hangs as it starts"
            )
        worst = self.workers[0]
        others = f" and {len(self.workers) - 1} more" if len(self.workers) > 1 else ""
        at = "; its process gives no sign" if self.silent else f"; it is at {worst.where}"
        line = f"worker {worst.rank} on {worst.node}{others} {lacks(worst.beat, self.seconds)}{at}"
        return f"{line}; it is ended (cluster.hang_timeout={timeout:g})" if self.end else line


class Watch:
    """Finds out from the workers' signs whether a run hangs.

    Args:
        timeout: seconds without progress after which a worker is to be ended; None for never.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.counts: dict[tuple[int, int], int] | None = None
        self.ticks: dict[tuple[int, int], tuple[int, float]] = {}
        self.since, self.told = 0.0, False

    def look(self, signs: Sequence[Sign], now: float) -> Finding | None:
        """What there is to say or do now, once each.

        Args:
            signs: the last of each worker; none while workers wait for the cluster.
            now: in seconds, on any clock.
        """
        counts = {(sign.rank, sign.pid): sign.count for sign in signs}
        for sign in signs:
            key = sign.rank, sign.pid
            if self.ticks.get(key, (-1, now))[0] != sign.ticks:
                self.ticks[key] = sign.ticks, now
        if counts != self.counts:
            self.counts, self.since, self.told = counts, now, False
            return None
        left = [sign for sign in signs if sign.phase != "end"]
        if signs and not left:
            return None
        silent = [sign for sign in left if now - self.ticks[sign.rank, sign.pid][1] > SILENT]
        workers = tuple(silent or behind(left))
        beat = workers[0].beat if workers else Beat()
        timeout, seconds = self.timeout, now - self.since
        least = START if beat.phase == "start" else 0.0
        if timeout is not None and workers and seconds >= max(least, bound(beat, timeout)):
            self.since, self.told = now, False  # where it could not be ended, again later
            return Finding(workers, bool(silent), seconds, True)
        if not self.told and seconds >= bound(beat, FLOOR if timeout is None else min(FLOOR, timeout / 2)):
            self.told = True
            return Finding(workers, bool(silent), seconds, False)
        return None


def behind(signs: Sequence[Sign]) -> list[Sign]:
    """Those that the others wait for: the last of them, and of these the ones that do not wait themselves."""
    place = min((sign.beat.place for sign in signs), default=None)
    last = [sign for sign in signs if sign.beat.place == place]
    return [sign for sign in last if not sign.waits] or last


@contextlib.contextmanager
def watched(spec: RunSpec, directory: RunDirectory) -> Iterator[None]:
    """Watch the workers of a run for the length of the block, also after a head was away for a moment."""
    log, watch = RunLog(directory), Watch(spec.cluster.hang_timeout)

    def look() -> None:
        signs = [] if pulse.is_restarting(directory.path) else pulse.signs(directory.path)
        found = watch.look(signs, time.monotonic())
        if found is not None:
            with contextlib.suppress(OSError):
                log.message(found.text(watch.timeout))
            # Of those that give no sign all: Ray Train does not go on from a start in which one still hangs.
            for worker in found.workers[: None if found.silent else 1] if found.end else ():
                with contextlib.suppress(Exception):
                    _end(worker, directory)

    try:
        with looking(look, LOOK, "watch"):
            yield
    finally:
        with contextlib.suppress(Exception):
            pulse.forget(directory.path)


def _end(worker: Sign, directory: RunDirectory) -> None:
    """End a worker's process from its own node."""
    pulse.note_hung(directory.path, worker.rank)
    there = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_process)
    ray.get(task.remote(worker.pid, worker.born), timeout=60)


def end_process(pid: int, when: str) -> bool:
    """End a process of this machine, also one that is stopped; not another that was given its number.

    Args:
        pid: its number.
        when: it was started; "" for one of Ray's of which that is not known.
    """
    if born(pid) != when and not (when == "" and _is_rays(pid)):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def _is_rays(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    return False
