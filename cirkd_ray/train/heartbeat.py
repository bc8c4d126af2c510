"""How far a rank has come, noted so cheaply that it can be done at every step.

The training thread notes what it begins; other threads of its process read it, to see whether it gets on
(`cirkd_ray.cluster.pulse`).
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Phase = Literal["start", "teacher", "data", "step", "checkpoint", "validation", "end"]
ORDER: tuple[Phase, ...] = ("start", "teacher", "data", "step", "checkpoint", "validation", "end")
"""What a rank does around a step, in this order; at the end it waits for nothing."""
_WAITING = (
    "torch/distributed/",
    "torch/autograd/graph.py",
    "ray/train/",
    "cirkd_ray/train/distributed.py",
    "cirkd_ray/train/agreement.py",
)
"""Files in which a rank waits for others: a collective, or a backward pass whose gradients are exchanged."""


@dataclass(frozen=True)
class Beat:
    """What a rank has begun.

    Attributes:
        phase: what it does.
        step: of which step, counted from 1; of a validation or checkpoint the step before it.
        part: images or tries that it has done of that.
        count: beats so far.
        usual: the median of its last steps, in seconds; None before there are any.
    """

    phase: Phase = "start"
    step: int = 0
    part: int = 0
    count: int = 0
    usual: float | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Grows as a rank gets on; ranks that are ahead have a larger one."""
        return self.step, ORDER.index(self.phase), self.part


class Heartbeat:
    """Notes of one training thread.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.beat = Beat()
        self.thread = threading.get_ident()
        self._clock, self._begun = clock, 0.0
        self._seconds: deque[float] = deque(maxlen=50)
        self._lock = threading.Lock()

    def note(self, phase: Phase, step: int, part: int = 0) -> None:
        """The calling thread begins this."""
        with self._lock:
            now, before, self.thread = self._clock(), self.beat, threading.get_ident()
            usual = before.usual
            if phase == "data":
                if (before.phase, before.step) == ("step", step - 1):  # no validation or checkpoint between
                    self._seconds.append(now - self._begun)
                    usual = statistics.median(self._seconds)
                self._begun = now
            self.beat = Beat(phase, step, part, before.count + 1, usual)

    def alive(self) -> None:
        """It does not hang: a thread of this process writes to storage, or waits for it within a bound of
        its own."""
        with self._lock:
            self.beat = replace(self.beat, count=self.beat.count + 1)

    def whereabouts(self) -> tuple[str, bool]:
        """The line of code that the training thread is at, and whether it waits for other ranks there."""
        frame = sys._current_frames().get(self.thread)
        if frame is None:
            return "", False
        path = Path(frame.f_code.co_filename)
        return f"{'/'.join(path.parts[-3:])}:{frame.f_lineno}", any(p in path.as_posix() for p in _WAITING)
