"""Stopping at the same step on all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cirkd_ray.train.distributed import World, minimum_over_ranks

INTERVAL = 1.0
"""Seconds between two exchanges, about: each makes the host wait for the device."""


class StopAgreement:
    """Whether to stop, asked before every step and answered alike on all ranks.

    The ranks exchange what they know only every few steps. How many is part of what they exchange, so that
    they always do it at the same step.

    Args:
        asked: whether this rank was asked to stop.
        world: this rank among its peers.
    """

    def __init__(self, asked: Callable[[], bool], world: World) -> None:
        self.asked, self.world = asked, world
        self.last, self.next, self.time = 0, 0, time.monotonic()

    def __call__(self, step: int) -> bool:
        """Whether all ranks stop before step `step`."""
        if self.world.size == 1:
            return self.asked()
        if step < self.next:
            return False
        now = time.monotonic()
        every = int((step - self.last) * INTERVAL / max(now - self.time, 1e-3)) if self.next else 1
        mine = torch.tensor([self.asked(), every], dtype=torch.int64, device=self.world.device)
        stop, every = (-minimum_over_ranks(-mine, self.world)).tolist()
        self.last, self.next, self.time = step, step + max(1, every), now
        return bool(stop)
