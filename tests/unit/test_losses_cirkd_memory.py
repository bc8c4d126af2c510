"""cirkd_memory against its equations, with queues kept by loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import DistillationLoss, LossInputs, build_loss
from cirkd_ray.losses.hashing import pixel_bits, random_slots
from cirkd_ray.losses.size import require_memory
from tests.contract.loss_cases import CLASSES, make_inputs, small_labels, small_loss

SETTINGS = {
    "pixel_memory": 20,
    "region_memory": 6,
    "pixel_keys": 32,
    "region_keys": 16,
    "pixel_candidates": 5,
    "kd_temperature": 2.0,
}


class LoopQueue:
    """A ring buffer a class, written one vector at a time."""

    def __init__(self, queue: Tensor, ptr: Tensor) -> None:
        self.vectors, self.ptr = queue.clone(), ptr.tolist()

    def push(self, k: int, vector: Tensor) -> None:
        self.vectors[k, self.ptr[k]] = vector
        self.ptr[k] = (self.ptr[k] + 1) % self.vectors.shape[1]


def enqueue_by_loops(loss: DistillationLoss, inputs: LossInputs) -> tuple[LoopQueue, LoopQueue]:
    pixel, region = (LoopQueue(q.queue, q.ptr) for q in (loss.pixel, loss.region))
    labels = small_labels(inputs).flatten(1)
    vectors = torch.nn.functional.normalize(inputs.teacher.feature, dim=1).flatten(2).transpose(1, 2)
    key = ("candidates", inputs.seed, inputs.step, inputs.micro)
    bits = pixel_bits(*labels.shape, 0, labels.device, *key)
    for n in range(len(labels)):
        for k in range(CLASSES):
            members = [i for i in range(labels.shape[1]) if int(labels[n, i]) == k]
            if members:
                mean = vectors[n, members].mean(0)
                region.push(k, mean / mean.norm())
            for i in sorted(members, key=lambda i: int(bits[n, i]))[: loss.pixel_candidates]:
                pixel.push(k, vectors[n, i])
    return pixel, region


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    pixel, region = enqueue_by_loops(loss, inputs)
    valid = small_labels(inputs).flatten() != -1
    rows = []
    for x in (loss.projector(inputs.student.feature), inputs.teacher.feature):
        flat = x.flatten(2).transpose(1, 2).flatten(0, 1)[valid]
        rows.append(flat / flat.norm(dim=1, keepdim=True))
    terms = {}
    for term, queue, draw in (("memory_pixel", pixel, 9), ("memory_region", region, 5)):
        key = (term, inputs.seed, inputs.step, inputs.micro)
        slots = random_slots(queue.vectors.shape[1], draw, valid.device, *key)
        keys = torch.cat([queue.vectors[k, slots] for k in range(CLASSES)])
        q, p = (torch.softmax(x @ keys.T / 0.1 / 2.0, 1) for x in rows)
        terms[term] = 4.0 * (p * (p / q).log()).sum(1).mean()
    return terms


def test_queues_are_those_of_the_loops_beyond_a_full_turn() -> None:
    loss = small_loss("cirkd_memory")
    for step in range(6):
        inputs = make_inputs(step=step)
        pixel, region = enqueue_by_loops(loss, inputs)
        loss(inputs)
        for mine, theirs in ((loss.pixel, pixel), (loss.region, region)):
            assert mine.ptr.tolist() == theirs.ptr
            torch.testing.assert_close(mine.queue, theirs.vectors, rtol=1e-6, atol=1e-9)


def test_bfloat16_storage_halves_the_memory() -> None:
    full, half = (small_loss("cirkd_memory", storage=s) for s in ("float32", "bfloat16"))
    built = build_loss(
        "cirkd_memory", student_channels=6, teacher_channels=8, num_classes=4, storage="bfloat16", **SETTINGS
    )
    assert built.pixel.queue.dtype == torch.bfloat16
    value, rounded = (loss(make_inputs())["memory_pixel"] for loss in (full, half))
    torch.testing.assert_close(value, rounded, rtol=0.05, atol=0.05)


def test_queues_start_as_unit_vectors_that_do_not_depend_on_the_seed() -> None:
    torch.manual_seed(1)
    a = small_loss("cirkd_memory")
    torch.manual_seed(2)
    b = small_loss("cirkd_memory")
    assert torch.equal(a.pixel.queue, b.pixel.queue)
    torch.testing.assert_close(a.pixel.queue.norm(dim=2), torch.ones(4, 20, dtype=torch.float64))


@pytest.mark.parametrize(
    ("memory", "keys"), [("pixel_memory", "pixel_keys"), ("region_memory", "region_keys")]
)
def test_memory_smaller_than_the_draw(memory: str, keys: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"loss 'cirkd_memory': {memory}=4 is smaller than the draw: {keys}"
    ):
        small_loss("cirkd_memory", **{memory: 4})


def test_memory_that_cannot_fit_is_refused_before_it_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"GiB.*free.*pixel_memory.*storage: bfloat16"):
        small_loss("cirkd_memory", pixel_memory=10**12)


def test_device_memory_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = small_loss("cirkd_memory")
    require_memory([loss], torch.device("cpu"))
    monkeypatch.setattr("cirkd_ray.losses.size.available_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"meta has .* free"):
        require_memory([loss], torch.device("meta"))


def test_micro_batches_draw_different_candidates() -> None:
    inputs = make_inputs()
    queues = []
    for micro in (0, 0, 1):
        loss = small_loss("cirkd_memory")
        loss(LossInputs(inputs.student, inputs.teacher, inputs.labels, micro=micro))
        queues.append(loss.pixel.queue)
    assert torch.equal(queues[0], queues[1])
    assert not torch.equal(queues[0], queues[2])


def test_published_wrap() -> None:
    """A queue that would reach its end: the newest vectors go to the tail and the pointer to 0."""
    loss = small_loss("cirkd_memory", mode="reference", pixel_memory=12)
    loss.pixel.ptr.fill_(9)
    loss.pixel.ptr[1] = 2
    vectors = torch.zeros(CLASSES, 5, 8, dtype=torch.float64)
    vectors[0, :3], vectors[1, :4] = 1.0, 2.0
    before = loss.pixel.queue.clone()
    loss.pixel.push_reference(vectors)
    assert loss.pixel.ptr.tolist() == [0, 6, 9, 9]
    assert bool((loss.pixel.queue[0, 9:] == 1.0).all())
    assert bool((loss.pixel.queue[1, 2:6] == 2.0).all())
    assert torch.equal(loss.pixel.queue[2:], before[2:])
