"""Ring buffers of teacher vectors, one a class: equal on all ranks by construction, or shared out to them.

Each rank picks a few candidate vectors a class from its own images. Those few are gathered, and every rank
writes them in the same order. Which pixels and which slots are random is a hash (`hashing.py`). Nothing is
broadcast and nothing waits for the device.

A sharded queue lies on W ranks in parts: class c is on rank c % W. A rank is sent the candidates of its
classes alone, and the keys that a step draws are gathered: each rank then has the same keys, in the same
order, as with the whole queue. The queue itself never moves, but to be saved.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.hashing import random_slots
from cirkd_ray.losses.reduce import all_gather, all_to_all, onto_first, rank_and_world
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

    Args:
        name: what it is called in messages.
        num_classes: K.
        slots: of each class.
        channels: C, of a vector.
        dtype: the storage type.
        sharded: keep this rank's classes alone.

    Attributes:
        queue: K x slots x C, in the storage type; sharded, of this rank's classes.
        ptr: K, the slot that is written next; sharded, of this rank's classes.
        num_classes: K, of all ranks.
        parts: ranks that share the classes out; 1 where each has all of them.
        sharded: whether it was asked to be, though there may be one rank.
    """

    queue: Tensor
    ptr: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int,
        slots: int,
        channels: int,
        dtype: torch.dtype,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        rank, self.parts = rank_and_world() if sharded else (0, 1)
        self.num_classes, self.sharded = num_classes, sharded
        self._mine = slice(rank, None, self.parts)
        mine = range(num_classes)[self._mine]
        size = len(mine) * slots * channels * dtype.itemsize
        shape = f"{len(mine)} x {slots} x {channels} {dtype}"
        refuse_if_too_large(size, torch.get_default_device(), f"{name} ({shape})")
        seed = zlib.crc32(f"{name} {num_classes} {slots} {channels}".encode())
        generator = torch.Generator().manual_seed(seed)
        queue = torch.empty(len(mine), slots, channels, dtype=dtype)
        # On `meta` only the shape is asked for. Else classes of others are drawn, too, to begin alike.
        for label in () if queue.is_meta else range(num_classes):
            drawn = torch.randn(slots, channels, generator=generator)
            if label in mine:
                queue[mine.index(label)].copy_(nn.functional.normalize(drawn, dim=1))
        self.register_buffer("queue", queue)
        self.register_buffer("ptr", torch.zeros(len(mine), dtype=torch.int64))

    def gather_candidates(self, vectors: Tensor) -> Tensor:
        """The candidates of all ranks' images that this rank writes.

        Args:
            vectors: N x K x M x C, of this rank's images.

        Returns:
            (all N) x K x M x C; sharded, of this rank's classes.
        """
        if self.parts == 1:
            return all_gather(vectors)
        rows = -(-self.num_classes // self.parts)
        missing = rows * self.parts - self.num_classes
        padded = nn.functional.pad(vectors, (0, 0, 0, 0, 0, missing))  # every rank is sent as many
        images, _, per_class, channels = vectors.shape
        sent = padded.view(images, rows, self.parts, per_class, channels).permute(2, 0, 1, 3, 4)
        return all_to_all(sent).flatten(0, 1)[:, : len(self.ptr)]

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
        """The vectors in the same `count` random slots of every class: K*count x C, in float32.

        Those of a sharded queue are gathered, in the storage type.
        """
        slots = random_slots(self.queue.shape[1], count, self.queue.device, *key)
        drawn = self.queue.index_select(1, slots)
        if self.parts > 1:
            missing = -(-self.num_classes // self.parts) - len(drawn)
            drawn = all_gather(nn.functional.pad(drawn, (0, 0, 0, 0, 0, missing)).unsqueeze(0))
            drawn = drawn.transpose(0, 1).flatten(0, 1)[: self.num_classes]
        return drawn.flatten(0, 1).to(torch.float32)

    @torch.no_grad()
    def whole(self) -> dict[str, Tensor]:
        """Name -> buffer of all classes, in the memory of the first rank's host; {} on the others.

        Every rank calls it. One class a rank is on the way at a time.
        """
        found: dict[str, Tensor] = {}
        for name, mine in (("queue", self.queue), ("ptr", self.ptr)):
            whole: Tensor | None = None
            for first in range(0, self.num_classes, self.parts):
                row = first // self.parts
                part = mine[row] if row < len(mine) else mine.new_zeros(mine.shape[1:])
                rows = onto_first(part)
                if rows is not None:
                    if whole is None:
                        whole = torch.empty((self.num_classes, *mine.shape[1:]), dtype=mine.dtype)
                    last = min(first + self.parts, self.num_classes)
                    for label in range(first, last):
                        whole[label].copy_(rows[label - first])
            if whole is not None:
                found[name] = whole
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take this rank's classes of a whole queue: checkpoints hold no parts."""
        if self.parts > 1:
            state_dict = dict(state_dict)
            for name in ("queue", "ptr"):
                whole = state_dict.get(prefix + name)
                if whole is not None and len(whole) == self.num_classes:
                    state_dict[prefix + name] = whole[self._mine]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
