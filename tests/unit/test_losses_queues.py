"""Random numbers, candidates and queues that depend on nothing but their key."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirkd_ray.losses.hashing import pixel_bits, random_bits, random_slots
from cirkd_ray.losses.queues import ClassQueue, pixel_candidates, region_candidates

CPU = torch.device("cpu")
property_test = settings(max_examples=100, deadline=None, derandomize=True)


def test_bits_are_uniform_and_depend_on_every_part_of_the_key() -> None:
    index = torch.arange(200_000)
    bits = random_bits(index, "a", 0, 0)
    assert int(bits.min()) >= 0
    assert int(bits.max()) < 2**32
    assert abs(float(bits.double().mean()) / 2**32 - 0.5) < 0.005
    counts = torch.bincount(bits >> 28, minlength=16).double()
    assert bool(((counts / len(index) - 1 / 16).abs() < 0.003).all())
    for key in (("b", 0, 0), ("a", 1, 0), ("a", 0, 1)):
        other = random_bits(index, *key)
        correlation = torch.corrcoef(torch.stack([bits.double(), other.double()]))[0, 1]
        assert abs(float(correlation)) < 0.01, key


def test_known_values_stay() -> None:
    """Queues in checkpoints rely on these: a resumed run must draw what the first would have drawn."""
    assert random_bits(torch.arange(3), "a", 1, 2).tolist() == [4089216876, 3334888464, 2794623506]


def test_slots_are_different_and_evenly_drawn() -> None:
    times = torch.zeros(50)
    for step in range(400):
        slots = random_slots(50, 10, CPU, "slots", step)
        assert len(slots.unique()) == 10
        times[slots] += 1
    assert bool(((times / 400 - 0.2).abs() < 0.1).all())


def test_images_have_the_same_numbers_on_any_rank() -> None:
    both = pixel_bits(4, 9, 0, CPU, "k", 3)
    assert torch.equal(pixel_bits(2, 9, 2, CPU, "k", 3), both[2:])


def test_candidates_are_pixels_of_the_class() -> None:
    labels = torch.tensor([[0, 1, 1, -1, 1, 2, 2, 9]])
    features = torch.nn.functional.normalize(torch.randn(1, 8, 4), dim=2)
    found = pixel_candidates(features, labels, pixel_bits(1, 8, 0, CPU, 0), 4, per_class=2)[0]
    assert found.shape == (4, 2, 4)
    assert torch.equal(found[0, 0], features[0, 0])
    assert not bool(found[0, 1].any() or found[3].any())
    for k, members in ((1, [1, 2, 4]), (2, [5, 6])):
        chosen = [next(i for i in members if torch.equal(features[0, i], v)) for v in found[k]]
        assert len(set(chosen)) == 2


def test_every_pixel_of_a_class_is_chosen_equally_often() -> None:
    labels = torch.zeros(1, 6, dtype=torch.int64)
    features = torch.eye(6).unsqueeze(0)
    total = sum(
        pixel_candidates(features, labels, pixel_bits(1, 6, 0, CPU, s), 1, 2)[0, 0].sum(0) for s in range(600)
    )
    assert bool(((total / 600 - 2 / 6).abs() < 0.08).all())


def test_region_of_a_class_that_an_image_lacks_is_zero() -> None:
    labels = torch.tensor([[0, 0, -1]])
    features = torch.nn.functional.normalize(torch.randn(1, 3, 4), dim=2)
    regions = region_candidates(features, labels, 2)
    mean = features[0, :2].mean(0)
    torch.testing.assert_close(regions[0, 0, 0], mean / mean.norm())
    assert not bool(regions[0, 1].any())


def queue(slots: int) -> ClassQueue:
    return ClassQueue("test", 2, slots, 1, torch.float32)


def test_ring_of_fewer_slots_than_new_vectors_keeps_the_newest() -> None:
    q = queue(3)
    q.push(torch.tensor([[1.0, 2.0, 0.0, 3.0, 4.0, 5.0], [0.0, 0.0, 6.0, 0.0, 0.0, 0.0]]).unsqueeze(2))
    assert q.ptr.tolist() == [2, 1]
    assert q.queue[0, :, 0].tolist() == [4.0, 5.0, 3.0]
    assert q.queue[1, 0, 0].item() == 6.0


def test_nothing_new_changes_nothing() -> None:
    q = queue(4)
    before = q.queue.clone()
    q.push(torch.zeros(2, 3, 1))
    assert torch.equal(q.queue, before)
    assert q.ptr.tolist() == [0, 0]


class ListQueue:
    """A ring of one class as a list, written one number at a time."""

    def __init__(self, slots: list[float]) -> None:
        self.slots, self.next = slots, 0

    def push(self, new: list[float]) -> None:
        for number in new:
            self.slots[self.next] = number
            self.next = (self.next + 1) % len(self.slots)

    def push_reference(self, new: list[float]) -> None:
        """As published: what would reach the end goes to the tail, and the pointer to 0."""
        full = self.next + len(new) >= len(self.slots)
        start = len(self.slots) - len(new) if full else self.next
        self.slots[start : start + len(new)] = new
        self.next = 0 if full else self.next + len(new)


@st.composite
def batches(draw: st.DrawFn, widest: int) -> list[torch.Tensor]:
    """Some batches of candidates of two classes (2 x M x 1): numbers from 2 on, each once, and gaps (0)."""
    number, found = 2.0, []
    for width in draw(st.lists(st.integers(1, widest), max_size=6)):
        batch = torch.zeros(2, width, 1)
        for k in range(2):
            for m in range(width):
                if draw(st.booleans()):
                    batch[k, m] = number
                    number += 1.0
        found.append(batch)
    return found


def new_of(batch: torch.Tensor, k: int) -> list[float]:
    return [v for v in batch[k, :, 0].tolist() if v]


@property_test
@given(slots=st.integers(1, 5), pushed=batches(widest=8))
def test_any_sequence_of_pushes_is_that_of_a_list(slots: int, pushed: list[torch.Tensor]) -> None:
    q = queue(slots)
    lists = [ListQueue(row.tolist()) for row in q.queue[..., 0]]
    for batch in pushed:
        q.push(batch)
        for k, plain in enumerate(lists):
            plain.push(new_of(batch, k))
        assert q.queue[..., 0].tolist() == [plain.slots for plain in lists]
        assert q.ptr.tolist() == [plain.next for plain in lists]
    for k in range(2):
        everything = [v for batch in pushed for v in new_of(batch, k)]
        assert q.ptr[k] == len(everything) % slots
        kept = sorted(v for v in q.queue[k, :, 0].tolist() if v >= 2.0)  # the first vectors are 1 or -1
        assert kept == everything[-slots:]


@property_test
@given(extra=st.integers(0, 3), pushed=batches(widest=4))
def test_any_sequence_of_published_pushes_is_that_of_a_list(extra: int, pushed: list[torch.Tensor]) -> None:
    q = queue(4 + extra)
    lists = [ListQueue(row.tolist()) for row in q.queue[..., 0]]
    for batch in pushed:
        q.push(batch, reference=True)
        for k, plain in enumerate(lists):
            plain.push_reference(new_of(batch, k))
        assert q.queue[..., 0].tolist() == [plain.slots for plain in lists]
        assert q.ptr.tolist() == [plain.next for plain in lists]


@property_test
@given(
    slots=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**6),
)
def test_drawn_slots_are_a_function_of_seed_and_step(slots: int, share: float, seed: int, step: int) -> None:
    draw = round(share * slots)
    torch.manual_seed(0)
    found = random_slots(slots, draw, CPU, "memory_pixel", seed, step, 0)
    random_slots(slots, draw, CPU, "memory_pixel", seed, step + 1, 0)  # what is drawn between does not count
    torch.manual_seed(1)
    assert torch.equal(random_slots(slots, draw, CPU, "memory_pixel", seed, step, 0), found)
    assert len(found.unique()) == draw
    assert all(0 <= slot < slots for slot in found.tolist())
    everything = random_slots(slots, slots, CPU, "memory_pixel", seed, step, 0)
    assert torch.equal(everything[:draw], found)
    numbered = ClassQueue("test", 1, slots, 1, torch.float32)
    numbered.queue.copy_(torch.arange(slots).view(1, -1, 1))
    assert numbered.draw(draw, "memory_pixel", seed, step, 0)[:, 0].tolist() == found.tolist()
