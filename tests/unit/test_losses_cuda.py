"""On a GPU: the same values and queues as on the CPU, and no step that waits for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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
