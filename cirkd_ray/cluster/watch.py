"""Watching a run's workers: one that hangs is told, and ended after `cluster.hang_timeout`.

A run hangs when none of its workers gets on. One of them is the reason; the others wait for it in a
collective. Ray Train finds the worker that is ended here as it finds any that died, and starts the workers
again from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cirkd_ray.cluster import pulse
from cirkd_ray.cluster.pulse import Sign, born
from cirkd_ray.config import RunSpec
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.train.rundir import RunDirectory

FLOOR = 60.0
"""Seconds without a step before which nothing is said."""
TIMES = 10
"""The usual times of a step before which nothing is said or done."""
GRACE = 3
"""By how much longer a start, the first steps, a validation, a checkpoint may take."""
SILENT = 5.0
"""Seconds without a sign after which a process counts as stopped."""
LOOK = 2.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Finding:
    """A run that hangs.

    Attributes:
        workers: those that are the reason, by all that is known.
        silent: whether their processes give no sign at all.
        seconds: since any worker got on.
        end: whether it is time to end the first of them.
    """

    workers: tuple[Sign, ...]
    silent: bool
    seconds: float
    end: bool

    def text(self, timeout: float | None) -> str:
        """What to say."""
        worst = self.workers[0]
        others = f" and {len(self.workers) - 1} more" if len(self.workers) > 1 else ""
        usual = f" (usually {worst.usual:.2g} s)" if worst.usual is not None and _steps(worst) else ""
        at = "; its process gives no sign" if self.silent else f"; it is at {worst.where}"
        line = (
            f"worker {worst.rank} on {worst.node}{others} {_lacks(worst)} for {self.seconds:.0f} s{usual}{at}"
        )
        return f"{line}; it is ended (cluster.hang_timeout={timeout:g})" if self.end else line


class Watch:
    """Finds out from the workers' signs whether a run hangs.

    Args:
        timeout: seconds without progress after which a worker is to be ended; None for never.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Forget what was seen."""
        self.counts: dict[tuple[int, int], int] = {}
        self.ticks: dict[tuple[int, int], tuple[int, float]] = {}
        self.since, self.told = now, False

    def look(self, signs: Sequence[Sign], now: float) -> Finding | None:
        """What there is to say or do now, once each.

        Args:
            signs: the last of each worker.
            now: in seconds, on any clock.
        """
        if not signs or len(signs) < signs[0].size:
            self.reset(now)
            return None
        counts = {(sign.rank, sign.pid): sign.count for sign in signs}
        for sign in signs:
            key = sign.rank, sign.pid
            if self.ticks.get(key, (-1, now))[0] != sign.ticks:
                self.ticks[key] = sign.ticks, now
        if counts != self.counts:
            self.counts, self.since, self.told = counts, now, False
            return None
        silent = [sign for sign in signs if now - self.ticks[sign.rank, sign.pid][1] > SILENT]
        workers = silent or behind(signs)
        say, end = self._bounds(workers[0])
        seconds = now - self.since
        if end is not None and seconds >= end:
            self.since, self.told = now, False  # where it could not be ended, again later
            return Finding(tuple(workers), bool(silent), seconds, True)
        if seconds >= say and not self.told:
            self.told = True
            return Finding(tuple(workers), bool(silent), seconds, False)
        return None

    def _bounds(self, sign: Sign) -> tuple[float, float | None]:
        """Seconds after which to say that a worker hangs, and to end it."""
        factor = 1 if _steps(sign) and sign.usual is not None else GRACE
        usual = TIMES * (sign.usual or 0.0)
        if self.timeout is None:
            return factor * max(FLOOR, usual), None
        return (
            factor * max(min(FLOOR, self.timeout / 2), usual),
            factor * max(self.timeout, usual),
        )


def behind(signs: Sequence[Sign]) -> list[Sign]:
    """Those that the others wait for: the last of them, and of these the ones that do not wait themselves."""
    place = min(sign.beat.place for sign in signs)
    last = [sign for sign in signs if sign.beat.place == place]
    return [sign for sign in last if not sign.waits] or last


@contextlib.contextmanager
def watched(spec: RunSpec, directory: RunDirectory) -> Iterator[None]:
    """Watch the workers of a run for the length of the block."""
    over = threading.Event()
    log, watch = RunLog(directory), Watch(spec.cluster.hang_timeout)

    def look() -> None:
        if pulse.is_restarting(directory.path):
            watch.reset(time.monotonic())
            return
        found = watch.look(pulse.signs(directory.path), time.monotonic())
        if found is not None:
            with contextlib.suppress(OSError):
                log.message(found.text(watch.timeout))
            if found.end:
                _end(found.workers[0], directory)

    def follow() -> None:
        while not over.wait(LOOK):
            with contextlib.suppress(Exception):  # a head that is away for a moment ends no run
                look()

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=LOOK)
        with contextlib.suppress(Exception):
            pulse.forget(directory.path)


def _end(worker: Sign, directory: RunDirectory) -> None:
    """End a worker's process from its own node."""
    pulse.note_hung(directory.path, worker.rank)
    there = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(end_process)
    ray.get(task.remote(worker.pid, worker.born), timeout=60)


def end_process(pid: int, when: str) -> bool:
    """End a process of this machine, also one that is stopped; not another that was given its number."""
    if born(pid) != when:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def _steps(sign: Sign) -> bool:
    return sign.phase in ("data", "step")


def _lacks(sign: Sign) -> str:
    """What a worker has not done."""
    if sign.phase == "start":
        return "has not begun to train"
    if sign.phase == "teacher":
        return "has not gone on scoring the teacher"
    if _steps(sign):
        return f"has not finished step {sign.step}"
    return f"has not gone on with the {sign.phase} at step {sign.step}"
