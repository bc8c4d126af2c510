"""Checkpoints that are asked for while a run goes on: before it is moved to other workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from cirkd_ray.train.distributed import World, minimum_over_ranks


class Request(Protocol):
    """Somebody's wish for a checkpoint."""

    def stands(self) -> bool:
        """Whether there is one, as far as this rank knows; asked often."""

    def met(self) -> None:
        """A checkpoint is on disk."""


class SaveOnRequest:
    """A `Duty`: writes a checkpoint of the last step, and waits for it, whenever a request stands.

    Args:
        request: what this rank knows.
        world: this rank among its peers.
        save: writes the checkpoint, on all ranks.
    """

    def __init__(self, request: Request, world: World, save: Callable[[], None]) -> None:
        self.request, self.world, self.save = request, world, save

    def due(self) -> bool:
        """Whether this rank knows of one."""
        return self.request.stands()

    def act(self) -> None:
        """Ask all ranks, of which each may hear of it a moment later."""
        mine = torch.tensor([self.request.stands()], dtype=torch.int64, device=self.world.device)
        if (-minimum_over_ranks(-mine, self.world)).item():
            self.save()
            if self.world.is_main:
                self.request.met()
