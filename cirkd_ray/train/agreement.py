"""Stopping, or doing something else that may be due at any time, at the same step on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import torch

from cirkd_ray.train.distributed import World, minimum_over_ranks
from cirkd_ray.train.stop import Stopped

T = TypeVar("T")

INTERVAL = 1.0
"""Seconds between two exchanges, about: each makes the host wait for the device."""


class Duty(Protocol):
    """Something that all ranks do together, whenever one of them finds that it is time."""

    def due(self) -> bool:
        """Whether this rank finds so."""

    def act(self) -> None:
        """Do it; called on all ranks at the same place, between two steps or two batches of a validation."""


class StopAgreement:
    """Whether to stop, asked before every step and every batch of a validation, answered alike on all ranks.

    The ranks exchange what they know only every few steps. How many is part of what they exchange, so that
    they always do it at the same step.

    Args:
        asked: whether this rank was asked to stop.
        world: this rank among its peers.
        duty: looked after at each exchange, unless the ranks stop.

    Attributes:
        agreed: whether the ranks have agreed to stop.
    """

    def __init__(self, asked: Callable[[], bool], world: World, duty: Duty | None = None) -> None:
        self.asked, self.world, self.duty, self.agreed = asked, world, duty, False
        self.last, self.next, self.time = 0, 0, time.monotonic()

    def __call__(self, step: int) -> bool:
        """Whether all ranks stop before step `step`, which may lie before the last that was asked for."""
        if not self.agreed and (step >= self.next or step < self.last):
            self._exchange(step, True)
        return self.agreed

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """These batches, of which each rank may have another number, until the ranks agree to stop.

        Raises:
            Stopped: on all ranks, before a batch or after the last.
        """
        counted = StopAgreement(self.asked, self.world, self.duty)
        for number, batch in enumerate(batches):
            self.agreed = self.agreed or counted(number)
            if self.agreed:
                raise Stopped("stopped while scoring")
            yield batch
        while self.world.size > 1 and not counted.agreed and counted._exchange(counted.next, False):
            pass
        if counted.agreed:
            self.agreed = True
            raise Stopped("stopped while scoring")

    def _exchange(self, step: int, more: bool) -> bool:
        """Agree with the other ranks, and on when to do so again; returns whether one has more before it."""
        asked, due = self.asked(), self.duty is not None and self.duty.due()
        if self.world.size > 1:
            now = time.monotonic()
            every = (
                int((step - self.last) * INTERVAL / max(now - self.time, 1e-3)) if self.next and more else 1
            )
            mine = torch.tensor([asked, every, more, due], dtype=torch.int64, device=self.world.device)
            asked, every, more, due = (-minimum_over_ranks(-mine, self.world)).tolist()
            self.last, self.next, self.time = step, step + max(1, every), now
        self.agreed = bool(asked)
        if due and not asked and self.duty is not None:
            self.duty.act()
        return bool(more)
