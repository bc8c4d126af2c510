"""Order and random numbers are functions of (seed, n) alone."""

from __future__ import annotations

import numpy as np
import pytest

from cirkd_ray.data.sampler import batch_numbers, permutation, sample_index, sample_rng
from cirkd_ray.errors import ConfigError


def test_every_epoch_goes_through_all_images_once_in_another_order() -> None:
    epochs = [[sample_index(3, e * 101 + i, 101) for i in range(101)] for e in range(3)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [sample_index(4, i, 101) for i in range(101)]


def test_an_index_does_not_depend_on_what_was_asked_before() -> None:
    before = [sample_index(7, n, 13) for n in range(60)]
    permutation.cache_clear()
    assert [sample_index(7, n, 13) for n in reversed(range(60))] == before[::-1]


def test_the_order_is_pinned() -> None:
    # Raw Philox words: a change of NumPy or of this module would change the order of everyone's runs.
    assert permutation(0, 0, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert permutation(2**40 + 1, 5, 5).tolist() == [2, 1, 0, 4, 3]


def test_random_numbers_of_neighbours_and_seeds_differ() -> None:
    draws = {
        tuple(sample_rng(seed, n).integers(0, 2**62, 4).tolist()) for seed in range(20) for n in range(50)
    }
    assert len(draws) == 1000
    assert sample_rng(5, 9).random() == sample_rng(5, 9).random()


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (3, 4)])
def test_ranks_and_micro_steps_share_a_global_batch(world: int, accumulate: int) -> None:
    parts = [r for rank in range(world) for r in batch_numbers(5, 12, rank, world, accumulate)]
    assert len({len(part) for part in parts}) == 1
    assert [n for part in parts for n in part] == list(range(60, 72))


def test_a_batch_that_does_not_divide_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"global batch of 10 does not divide over 4 workers"):
        batch_numbers(0, 10, 0, 4)
    with pytest.raises(
        ConfigError, match=r"10 does not divide over 2 workers x 4 accumulation steps.*multiple of 8"
    ):
        batch_numbers(0, 10, 0, 2, 4)


def test_orders_are_uniform() -> None:
    first = np.array([permutation(seed, 0, 5)[0] for seed in range(2000)])
    assert np.all(np.abs(np.bincount(first, minlength=5) - 400) < 5 * np.sqrt(400))
