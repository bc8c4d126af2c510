"""Which image is sample n of a run, and which random numbers augment it: pure functions of (seed, n).

Nothing here depends on ranks, loader processes or restarts. So a resumed run sees the same samples, with any
number of workers, as long as the global batch is the same.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.errors import ConfigError

_ORDER, _AUGMENT, _APPEARANCE = 1, 2, 3
_MASK = (1 << 64) - 1


def keyed_generator(seed: int, purpose: int, n: int) -> np.random.Philox:
    """Counter-based bit generator number `n` of a purpose: streams of distinct arguments never overlap."""
    key = np.array([seed & _MASK, purpose], np.uint64)  # a list's large numbers would become floats
    return np.random.Philox(key=key, counter=[0, 0, n, 0])


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of `size` images in an epoch.

    It sorts raw 64-bit words instead of calling `Generator.permutation`: NumPy keeps the output of its bit
    generators for good, but may change how a `Generator` uses it, and with it the order of every run.
    """
    words = keyed_generator(seed, _ORDER, epoch).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def sample_index(seed: int, n: int, size: int) -> int:
    """The index of sample `n` among `size` images: epoch n // size goes through all of them once."""
    return int(permutation(seed, n // size, size)[n % size])


def sample_rng(seed: int, n: int) -> np.random.Generator:
    """The random numbers that augment sample `n`."""
    return np.random.Generator(keyed_generator(seed, _AUGMENT, n))


def appearance_rng(seed: int, n: int) -> np.random.Generator:
    """The random numbers of the further augmentation of sample `n`."""
    return np.random.Generator(keyed_generator(seed, _APPEARANCE, n))


def local_batch(global_batch: int, world_size: int, accumulate: int = 1) -> int:
    """Samples of one rank in one micro-step.

    Raises:
        ConfigError: the global batch does not divide.
    """
    parts = world_size * accumulate
    if global_batch % parts:
        steps = f" x {accumulate} accumulation steps" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size: a global batch of {global_batch} does not divide over {world_size} "
            f"workers{steps}; take a multiple of {parts}"
        )
    return global_batch // parts


def batch_numbers(
    step: int, global_batch: int, rank: int, world_size: int, accumulate: int = 1
) -> list[range]:
    """The sample numbers of a rank in an optimiser step, one range for each micro-step.

    The numbers of a micro-step are consecutive over ranks: rank 0 has the first `global_batch / (world_size *
    accumulate)`, and so on. So images that follow one another in the global batch are in one micro-batch, as
    losses that compare them ask for.

    Raises:
        ConfigError: the global batch does not divide.
    """
    micro = local_batch(global_batch, world_size, accumulate)
    starts = [step * global_batch + (i * world_size + rank) * micro for i in range(accumulate)]
    return [range(start, start + micro) for start in starts]
