"""Which images are compared with one another: groups of consecutive images of the global batch.

The published losses compare all images that a GPU holds: pairs of 2 in the published layout of 16 images on 8
GPUs, but 16 with 16 on one GPU, which is another loss at eight times the cost an image. Here image m of the
global batch belongs to group m // size, on any number of workers. So the loss and its cost do not depend on
them. Images of other ranks are gathered only where a group spans ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from cirkd_ray.config.roles import Computes
from cirkd_ray.losses.reduce import all_gather, all_gather_grad, rank_and_world

Group = Computes[Annotated[int, Field(ge=1)] | Literal["rank", "batch"]]
"""A setting: images a group; `rank`: those that a rank holds, as the published code does, so that the loss
depends on the number of workers; `batch`: those of the global (micro-)batch."""


class Part(NamedTuple):
    """Local images that share a group.

    Attributes:
        rows: of the local images.
        keys: of the images that `Groups.keys` returns: those of the group.
    """

    rows: slice
    keys: slice


class Groups:
    """The groups of this rank's part of a (micro-)batch, whose ranks hold equally many images, in order.

    Args:
        images: how many this rank holds.
        group: the setting. Where it does not divide the global batch, the last group is smaller.
    """

    def __init__(self, images: int, group: int | str) -> None:
        rank, world = rank_and_world()
        total, first = world * images, rank * images
        size = {"rank": images, "batch": total}.get(str(group), group)
        assert isinstance(size, int)
        self.images = images
        self.gathers = world > 1 and images % size != 0
        self._first, self._size, self._total = first, size, total

    def parts(self) -> Iterator[Part]:
        """Each group's local images, and where its images lie among the keys."""
        at = self._first
        while at < self._first + self.images:
            begin = at // self._size * self._size
            end = min(begin + self._size, self._total)
            stop = min(end, self._first + self.images)
            shift = 0 if self.gathers else self._first
            yield Part(
                slice(at - self._first, stop - self._first),
                slice(begin - shift, end - shift),
            )
            at = stop

    def keys(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Student's and teacher's maps (local images first) of all images that a group of this rank holds;
        gradients flow to every rank's part."""
        return (all_gather_grad(student), all_gather(teacher)) if self.gathers else (student, teacher)
