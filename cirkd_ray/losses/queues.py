"""Ring buffers of teacher vectors, one a class, equal on all ranks by construction.

Each rank picks a few candidate vectors a class from its own images. Those few are gathered, and every rank
writes them in the same order. Which pixels and which slots are random is a hash (`hashing.py`). Nothing is
broadcast and nothing waits for the device.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.hashing import random_slots
from cirkd_ray.losses.size import refuse_if_too_large


def region_candidates(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The normalised mean of each class's pixels in each image.

    Args:
        features: N x L x C, normalised.
        labels: N x L; other values than 0..num_classes-1 belong to no class.

    Returns:
        N x K x 1 x C, zero for a class that the image does not have.
    """
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    member = (labels.unsqueeze(1) == classes).to(features.dtype)
    return nn.functional.normalize(member @ features, dim=-1).unsqueeze(2)


def pixel_candidates(
    features: Tensor, labels: Tensor, bits: Tensor, num_classes: int, per_class: int
) -> Tensor:
    """Up to `per_class` random pixels of each class in each image.

    Args:
        features: N x L x C, normalised.
        labels: N x L; other values than 0..num_classes-1 belong to no class.
        bits: N x L random numbers in 0..2^32-1; a class's pixels with the smallest are taken.

    Returns:
        N x K x per_class x C; zero where the class has fewer pixels.
    """
    images, pixels = labels.shape
    group = labels.masked_fill((labels < 0) | (labels >= num_classes), num_classes)
    order = ((group << 32) | bits).argsort(dim=1, stable=True)
    count = labels.new_zeros(images, num_classes + 1).scatter_add_(1, group, torch.ones_like(group))[:, :-1]
    start = count.cumsum(1) - count
    rank = torch.arange(per_class, device=labels.device)
    position = (start.unsqueeze(-1) + rank).clamp_(max=pixels - 1)
    chosen = order.gather(1, position.flatten(1)).view_as(position)
    return _pick(features, chosen, rank < count.unsqueeze(-1))


def pixel_candidates_reference(
    features: Tensor, labels: Tensor, bits: Tensor, num_classes: int, per_class: int
) -> Tensor:
    """`pixel_candidates` with the published defect: a class of n pixels gets pixels 0..n-1 of the image."""
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    count = (labels.unsqueeze(1) == classes).sum(-1, keepdim=True)
    outside = torch.arange(labels.shape[1], device=labels.device) >= count
    order = bits.unsqueeze(1).expand_as(outside).masked_fill(outside, 2**32).argsort(dim=-1, stable=True)
    valid = torch.arange(per_class, device=labels.device) < count
    return _pick(features, nn.functional.pad(order, (0, per_class))[..., :per_class], valid)


def _pick(features: Tensor, position: Tensor, valid: Tensor) -> Tensor:
    """Rows of features (N x L x C) at N x K x P positions, zero where not valid."""
    channels = features.shape[2]
    index = position.flatten(1).unsqueeze(-1).expand(-1, -1, channels)
    # gather takes the transposed view of a map as it is; an index into joined images would copy it first.
    return features.gather(1, index).view(*position.shape, channels).masked_fill(~valid.unsqueeze(-1), 0.0)


class ClassQueue(nn.Module):
    """A ring buffer of unit vectors for each class.

    It starts full of random unit vectors: a function of its shape and name alone, not of the run's seed, so
    that every rank, run and resume begins alike.

    Attributes:
        queue: K x slots x C, in the storage type.
        ptr: K, the slot that is written next.
    """

    queue: Tensor
    ptr: Tensor

    def __init__(self, name: str, num_classes: int, slots: int, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        size = num_classes * slots * channels * dtype.itemsize
        refuse_if_too_large(
            size, torch.get_default_device(), f"{name} ({num_classes} x {slots} x {channels} {dtype})"
        )
        seed = zlib.crc32(f"{name} {num_classes} {slots} {channels}".encode())
        generator = torch.Generator().manual_seed(seed)
        queue = torch.empty(num_classes, slots, channels, dtype=dtype)
        for rows in () if queue.is_meta else queue:  # on `meta` only the shape is asked for
            rows.copy_(nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=1))
        self.register_buffer("queue", queue)
        self.register_buffer("ptr", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Tensor, reference: bool = False) -> None:
        """Write the non-zero vectors of `vectors` (K x M x C), in order, over the oldest ones.

        Args:
            vectors: of more than `slots` new ones the newest stay.
            reference: write one image's vectors (M <= slots) as published: what would reach the end goes to
                the tail, and the next vector to slot 0.
        """
        slots, candidates = self.queue.shape[1], vectors.shape[1]
        for first in range(0, candidates, slots):  # in one piece, but for a queue shorter than a step's
            self._push(vectors[:, first : first + slots], reference)

    def _push(self, vectors: Tensor, reference: bool) -> None:
        """`push` of at most as many vectors a class as there are slots."""
        classes, slots, channels = self.queue.shape
        valid = (vectors != 0).any(-1)
        before = valid.cumsum(1)
        count = before[:, -1]
        start, end = self.ptr, self.ptr + count
        if reference:
            full = end >= slots
            start, end = torch.where(full, slots - count, start), torch.where(full, 0, end)
        # Valid vectors go to the next slots in order, others to those behind, where the old ones stay.
        place = torch.arange(vectors.shape[1], device=vectors.device) + count.unsqueeze(1) - before
        place = torch.where(valid, before - 1, place)
        target = (place + start.unsqueeze(1)) % slots
        target += torch.arange(0, classes * slots, slots, device=vectors.device).unsqueeze(1)
        flat, target = self.queue.view(-1, channels), target.flatten()
        old = flat.index_select(0, target)
        flat.index_copy_(
            0, target, torch.where(valid.flatten().unsqueeze(1), vectors.flatten(0, 1).to(flat.dtype), old)
        )
        torch.remainder(end, slots, out=self.ptr)

    def draw(self, count: int, *key: int | str) -> Tensor:
        """The vectors in the same `count` random slots of every class: K*count x C, in float32."""
        slots = random_slots(self.queue.shape[1], count, self.queue.device, *key)
        return self.queue.index_select(1, slots).flatten(0, 1).to(torch.float32)


def keys_per_class(total: int, num_classes: int, slots: int, name: str) -> int:
    """`total // num_classes + 1` keys are drawn a class.

    Raises:
        ConfigError: the queue `name` has fewer slots.
    """
    draw = total // num_classes + 1
    if draw > slots:
        raise ConfigError(
            f"{name}_memory: {slots} is smaller than the draw: {name}_keys={total} draws {draw} a class of "
            f"{num_classes}; raise {name}_memory or set {name}_keys to at most {slots * num_classes - 1}"
        )
    return draw
