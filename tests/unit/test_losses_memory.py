"""Random numbers, candidates and queues that depend on nothing but their key."""

from __future__ import annotations

from pathlib import Path

import torch

from cirkd_ray.losses.memory import (
    ClassQueue,
    available_bytes,
    pixel_bits,
    pixel_candidates,
    random_bits,
    random_slots,
    region_candidates,
)

CPU = torch.device("cpu")


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


def container(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("990000\n")
    (folder / "memory.stat").write_text(
        "anon 290000\nfile 700000\nshmem 200000\ninactive_file 300000\nactive_file 200000\n"
    )
    return folder


def test_cached_files_of_a_container_are_free_memory(tmp_path: Path) -> None:
    assert available_bytes(CPU, container(tmp_path, "1000000")) == 1_000_000 - 990_000 + 500_000


def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path) -> None:
    assert (available_bytes(CPU, container(tmp_path, "max")) or 0) > 10_000_000
