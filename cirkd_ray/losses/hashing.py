"""Random numbers that are a hash of their key: the same on every device, rank and number of ranks.

A key is a name, the seed and the step; an index is a slot, or an image of the global batch
with one of its pixels. Nothing is drawn in sequence, so there is no generator whose state a checkpoint would
hold. Nothing waits for the device.
"""

from __future__ import annotations

import functools
import zlib

import torch
from torch import Tensor

from cirkd_ray.losses.reduce import rank_and_world

_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(x: int) -> int:
    """The int64 with the bits of x modulo 2^64."""
    x &= 2**64 - 1
    return x - 2**64 if x >= 2**63 else x


def _stream(*key: int | str) -> int:
    """64 bits that differ from key to key."""
    stream = 0
    for part in key:
        value = zlib.crc32(part.encode()) if isinstance(part, str) else part
        stream = (stream + value + 1) * _MIX1 & (2**64 - 1)
        stream ^= stream >> 29
    return stream


def random_bits(index: Tensor, *key: int | str) -> Tensor:
    """32 random bits for each index (int64), a pure function of (key, index): the finaliser of SplitMix64."""
    x = index * _signed(_GAMMA) + _signed(_stream(*key))
    # int64 shifts carry the sign, so the high bits are cut off to shift as unsigned.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_MIX1)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_MIX2)
    return (x >> 32) & (2**32 - 1)


def random_slots(slots: int, draw: int, device: torch.device, *key: int | str) -> Tensor:
    """`draw` different slots out of `slots`, a function of the key; those with the smallest bits, in order.

    They are chosen in main memory, which takes no longer than a device's many launches for few numbers.
    """
    index = _host_index(slots)
    ranked = (random_bits(index, *key) << 31) | index  # of equal bits the first slot comes first
    chosen = ranked.topk(draw, largest=False).values & (2**31 - 1)
    return (chosen.pin_memory() if device.type == "cuda" else chosen).to(device, non_blocking=True)


@functools.lru_cache(maxsize=8)
def _host_index(slots: int) -> Tensor:
    return torch.arange(slots, device="cpu")


@functools.lru_cache(maxsize=8)
def _pixel_index(images: int, pixels: int, first_image: int, device: torch.device) -> Tensor:
    """The index of each pixel (images x pixels), the same in each step."""
    image = torch.arange(first_image, first_image + images, device=device).unsqueeze(1)
    return (image << 32) + torch.arange(pixels, device=device)


def pixel_bits(images: int, pixels: int, first_image: int, device: torch.device, *key: int | str) -> Tensor:
    """Random bits (images x pixels) of images `first_image`, `first_image + 1`, ... of the global batch."""
    return random_bits(_pixel_index(images, pixels, first_image, device), *key)


def bits_of_rank(images: int, pixels: int, device: torch.device, micro: int, *key: int | str) -> Tensor:
    """`pixel_bits` of this rank's images of a micro-batch, which ranks share in order."""
    rank, world = rank_and_world()
    return pixel_bits(images, pixels, (micro * world + rank) * images, device, *key)
