"""Noticing that a run does not get on: when to say so, and what.

Without Ray nobody else looks: a thread says it, in the log and on the terminal. What to do is the user's
choice. On Ray `cirkd_ray.cluster.watch` looks at all workers of a run, and ends one that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cirkd_ray.train.heartbeat import Beat, Heartbeat

FLOOR = 60.0
"""Seconds without a step before which nothing is said."""
TIMES = 10
"""The usual times of a step before which nothing is said or done."""
GRACE = 3
"""By how much longer a start, the first steps, a validation, a checkpoint may take."""
LOOK = 1.0
"""Seconds between two looks."""


def bound(beat: Beat, seconds: float) -> float:
    """Seconds without progress that are allowed where a step is allowed so many."""
    factor = 1 if steps(beat) and beat.usual is not None else GRACE
    return factor * max(seconds, TIMES * (beat.usual or 0.0))


def steps(beat: Beat) -> bool:
    """Whether it is within a step."""
    return beat.phase in ("data", "step")


def lacks(beat: Beat, seconds: float) -> str:
    """What has not been done for so long."""
    if beat.phase == "start":
        what = "has not begun to train"
    elif beat.phase == "teacher":
        what = "has not gone on scoring the teacher"
    elif steps(beat):
        what = f"has not {'got the images of' if beat.phase == 'data' else 'finished'} step {beat.step}"
    else:
        what = f"has not gone on with the {beat.phase} at step {beat.step}"
    usual = f" (usually {beat.usual:.2g} s)" if beat.usual is not None and steps(beat) else ""
    return f"{what} for {seconds:.0f} s{usual}"


class Stall:
    """Finds out from one heartbeat whether it stands still.

    Args:
        heartbeat: of the thread that works.
        clock: seconds, for tests.
    """

    def __init__(self, heartbeat: Heartbeat, clock: Callable[[], float] = time.monotonic) -> None:
        self.heartbeat, self.clock = heartbeat, clock
        self.count, self.since, self.told = heartbeat.beat.count, clock(), 0.0

    def look(self) -> str | None:
        """What there is to say now: that it stands still, again after each doubling, and that it goes on."""
        beat, now = self.heartbeat.beat, self.clock()
        if beat.count != self.count:
            told, waited = self.told, now - self.since
            self.count, self.since, self.told = beat.count, now, 0.0
            return f"the run goes on after {waited:.0f} s" if told else None
        seconds = now - self.since
        if seconds < max(bound(beat, FLOOR), 2 * self.told):
            return None
        self.told = seconds
        where = self.heartbeat.whereabouts()[0]
        return f"WARNING: the run {lacks(beat, seconds)}; it is at {where}"


@contextmanager
def told_where_it_stalls(heartbeat: Heartbeat, say: Callable[[str], None]) -> Iterator[None]:
    """Say, for the length of the block, when what the heartbeat is of stands still.

    Args:
        heartbeat: of the thread that works.
        say: hears it, in a thread of its own; what it raises is not told.
    """
    stall = Stall(heartbeat)

    def look() -> None:
        if (found := stall.look()) is not None:
            say(found)

    with looking(look, LOOK, "stall"):
        yield


@contextmanager
def looking(look: Callable[[], None], every: float, name: str) -> Iterator[None]:
    """Call `look` in a thread for the length of the block, also after it has raised something.

    Args:
        look: looks at something once.
        every: seconds between two looks.
        name: of the thread.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(every):
            with suppress(Exception):
                look()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=every)
