"""Order and random numbers are functions of (seed, n) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirkd_ray.data.base import Sample, SegmentationDataset
from cirkd_ray.data.loader import Batch, train_loader
from cirkd_ray.data.sampler import batch_numbers, permutation, sample_index, sample_rng
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.errors import ConfigError
from cirkd_ray.types import ClassSet
from tests.errors import refuses

SEEDS = st.integers(0, 2**64 - 1)


@given(seed=SEEDS, epoch=st.integers(0, 10**6), size=st.integers(1, 300))
def test_each_epoch_is_a_permutation(seed: int, epoch: int, size: int) -> None:
    order = [sample_index(seed, epoch * size + i, size) for i in range(size)]
    assert sorted(order) == list(range(size))


@given(seed=SEEDS, size=st.integers(1, 50), asked=st.lists(st.integers(0, 10**6), max_size=30))
def test_a_sample_is_a_function_of_seed_and_number(seed: int, size: int, asked: list[int]) -> None:
    def drawn(n: int) -> tuple[int, float]:
        return sample_index(seed, n, size), sample_rng(seed, n).random()

    found = {n: drawn(n) for n in asked}
    permutation.cache_clear()
    assert {n: drawn(n) for n in sorted(found)} == found


class Numbered(SegmentationDataset):
    """Images of noise that tell which sample they are."""

    classes = ClassSet(("a", "b"), ((0, 0, 0), (9, 9, 9)))

    def __len__(self) -> int:
        return 7

    def name(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> Sample:
        noise = np.random.default_rng(index).integers(0, 256, (12, 14, 3), dtype=np.uint8)
        return Sample(noise, noise[..., 0] % 2, str(index))


def batches(seed: int, total: int, **split: int) -> list[Batch]:
    transform = TrainTransform(crop=(8, 10))
    return list(train_loader(Numbered(), transform, seed=seed, total_steps=total, **split))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    world=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    micro=st.integers(1, 3),
    start=st.integers(0, 3),
    more=st.integers(1, 3),
)
def test_any_split_and_any_resumed_step_gives_the_same_samples(
    seed: int, world: int, accumulate: int, micro: int, start: int, more: int
) -> None:
    """One process from step 0 sees what any number of ranks and micro-steps see together from any step."""
    size, total = world * accumulate * micro, start + more
    whole = batches(seed, total, global_batch=size)[start:]
    split = {"global_batch": size, "world_size": world, "accumulate": accumulate, "start_step": start}
    ranks = [batches(seed, total, rank=rank, **split) for rank in range(world)]
    for step, expected in enumerate(whole):
        own = range(step * accumulate, (step + 1) * accumulate)
        parts = [rank[micro] for micro in own for rank in ranks]
        for k, tensor in enumerate(expected[:3]):
            torch.testing.assert_close(torch.cat([part[k] for part in parts]), tensor, rtol=0, atol=0)
    assert all(len(rank) == len(whole) * accumulate for rank in ranks)


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


def test_seeds_of_64_bits_differ_to_the_last_bit() -> None:
    assert len({sample_rng(seed, 3).random() for seed in (2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1)}) == 4


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (3, 4)])
def test_ranks_and_micro_steps_share_a_global_batch(world: int, accumulate: int) -> None:
    ranks = [batch_numbers(5, 12, rank, world, accumulate) for rank in range(world)]
    parts = [ranks[rank][micro] for micro in range(accumulate) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert [n for part in parts for n in part] == list(range(60, 72))


def test_a_batch_that_does_not_divide_names_both_numbers() -> None:
    with refuses("train.batch_size", ConfigError, 10, "4 workers"):
        batch_numbers(0, 10, 0, 4)
    with refuses("train.batch_size", ConfigError, 10, "2 workers x 4 accumulation", 8):
        batch_numbers(0, 10, 0, 2, 4)


def test_orders_are_uniform() -> None:
    first = np.array([permutation(seed, 0, 5)[0] for seed in range(2000)])
    assert np.all(np.abs(np.bincount(first, minlength=5) - 400) < 5 * np.sqrt(400))
