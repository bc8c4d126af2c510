"""The queues of cirkd_memory."""

from __future__ import annotations

import copy

import pytest
import torch

from cirkd_ray.bench._losses_naive import enqueue
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LossInputs, build_loss
from cirkd_ray.losses.size import require_memory
from tests.contract.loss_cases import CLASSES, make_inputs, small_loss
from tests.errors import refuses

SETTINGS = {
    "pixel_memory": 20,
    "region_memory": 6,
    "pixel_keys": 32,
    "region_keys": 16,
    "pixel_candidates": 5,
    "kd_temperature": 2.0,
}


def test_queues_are_those_of_the_loops_beyond_a_full_turn() -> None:
    loss = small_loss("cirkd_memory")
    plain = copy.deepcopy(loss)
    for step in range(6):
        inputs = make_inputs(step=step)
        enqueue(plain, inputs)
        loss(inputs)
        for mine, theirs in ((loss.pixel, plain.pixel), (loss.region, plain.region)):
            assert torch.equal(mine.ptr, theirs.ptr)
            torch.testing.assert_close(mine.queue, theirs.queue, rtol=1e-6, atol=1e-9)


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
    with refuses("loss 'cirkd_memory'", ConfigError, f"{memory}: 4", f"{keys}"):
        small_loss("cirkd_memory", **{memory: 4})


def test_memory_that_cannot_fit_is_refused_before_it_is_taken() -> None:
    with refuses("loss 'cirkd_memory'", ConfigError, "GiB free", "pixel_memory", "storage: bfloat16"):
        small_loss("cirkd_memory", pixel_memory=10**12)


def test_device_memory_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = small_loss("cirkd_memory")
    require_memory([loss], torch.device("cpu"))
    monkeypatch.setattr("cirkd_ray.losses.size.available_bytes", lambda device: 1000)
    with refuses("distill.losses", ConfigError, "meta", "GiB free"):
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
    loss.pixel.push(vectors, reference=True)
    assert loss.pixel.ptr.tolist() == [0, 6, 9, 9]
    assert bool((loss.pixel.queue[0, 9:] == 1.0).all())
    assert bool((loss.pixel.queue[1, 2:6] == 2.0).all())
    assert torch.equal(loss.pixel.queue[2:], before[2:])
