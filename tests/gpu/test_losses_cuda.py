"""On a GPU: the same values and queues as on the CPU, and no step that waits for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.relational import relational_kl
from cirkd_ray.losses.symmetric import relational_kl_symmetric
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import KINDS, make_inputs, small_loss, student_maps, total

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_on_the_cpu(kind: str) -> None:
    here, there = small_loss(kind), small_loss(kind).cuda()
    for step in range(2):
        inputs = make_inputs(step=step)
        student = SegmentationOutput(*(t.detach().cuda().requires_grad_() for t in student_maps(inputs)))
        teacher = SegmentationOutput(*(t.cuda() for t in inputs.teacher[:3]))
        moved = replace(inputs, student=student, teacher=teacher, labels=inputs.labels.cuda())
        expected, found = here(inputs), there(moved)
        for name, value in found.items():
            torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(there.buffers(), here.buffers(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind: str) -> None:
    loss = small_loss(kind).float().cuda()
    if loss.discriminator is not None:
        loss.discriminator.requires_grad_(False)
    for step in range(2):
        inputs = make_inputs(dtype=torch.float32, step=step)
        student = SegmentationOutput(*(t.detach().cuda().requires_grad_() for t in student_maps(inputs)))
        teacher = SegmentationOutput(*(t.cuda() for t in inputs.teacher[:3]))
        moved = replace(inputs, student=student, teacher=teacher, labels=inputs.labels.cuda())
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step checks the labels
        try:
            total(loss(moved)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("widths", "images"), [((128, 256), 2), ((128, 128), 1), ((19, 19), 2)])
def test_fused_relations_at_real_sizes(widths: tuple[int, int], images: int, hidden: bool) -> None:
    """Several tiles, maps in bf16, two groups; against float64 on the CPU (bounds: `attention.py`)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        F.normalize(torch.randn(2, images, 4096, c, generator=generator).bfloat16().double(), dim=-1)
        for c in widths
    )
    mask = torch.rand(2, images, 4096, generator=generator) > 0.3 if hidden else None
    weights = torch.full((2 * images * 4096,), 1.0 / (2 * images * 4096 * images), dtype=torch.float64)
    if mask is not None:
        weights = weights * mask.flatten()
    found = []
    for device, dtype, path in (("cpu", torch.float64, "auto"), ("cuda", torch.float32, "fused")):
        leaf = student.to(device, dtype).requires_grad_()
        value = relational_kl_symmetric(
            leaf,
            teacher.to(device, dtype),
            weights.to(device, dtype),
            temperature=0.1,
            mask=None if mask is None else mask.to(device),
            relations=Relations(path=path),  # type: ignore[arg-type]
        )
        (gradient,) = torch.autograd.grad(value, leaf)
        found.append((value.detach().double().cpu(), gradient.double().cpu()))
    (expected, wanted), (value, gradient) = found
    assert abs(value - expected) < 1e-4 * expected
    assert (gradient - wanted).norm() < 8e-3 * wanted.norm()


def test_fused_relations_to_a_queue() -> None:
    generator = torch.Generator().manual_seed(1)
    q_s, q_t, keys = (
        F.normalize(torch.randn(n, 256, generator=generator).double(), dim=-1) for n in (8192, 8192, 4104)
    )
    found = []
    for device, dtype, path in (("cpu", torch.float64, "auto"), ("cuda", torch.float32, "fused")):
        leaf, drawn = q_s.to(device, dtype).requires_grad_(), keys.to(device, dtype).unsqueeze(0)
        weights = leaf.new_full((8192,), 1 / 8192).detach()
        relations = Relations(path=path)  # type: ignore[arg-type]
        value = relational_kl(
            leaf, q_t.to(device, dtype), drawn, drawn, weights, temperature=0.1, relations=relations
        )
        (gradient,) = torch.autograd.grad(value, leaf)
        found.append((value.detach().double().cpu(), gradient.double().cpu()))
    (expected, wanted), (value, gradient) = found
    assert abs(value - expected) < 1e-4 * expected
    assert (gradient - wanted).norm() < 8e-3 * wanted.norm()
