"""Every loss on maps in bf16 of several tiles, beside float64 on the CPU: value, gradient and queues."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cirkd_ray.bench._losses_measure import CPU, Shape, make_inputs, make_loss
from cirkd_ray.device import autocast
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs
from cirkd_ray.types import SegmentationOutput
from tests.gpu.subjects import DEVICES

SIZES = {
    "cpu": Shape(2, 32, 48, 32, 64, 19, slots=250, ignored=0.1),
    "cuda": Shape(2, 64, 128, 128, 256, 19, slots=2_000, ignored=0.1),
}
"""A map's pixels fill more than one tile of `symmetric.py` and many of `relational.py`."""
DEFAULT = (1e-4, 5e-3)
BOUNDS = {
    **dict.fromkeys(("adversarial", "cirkd_minibatch", "cwd", "fitnet", "ifvd", "skd"), (1e-3, 2e-2)),
    **dict.fromkeys(("af_dcd", "cirkd_channel", "cirkd_memory", "cirkd_v2", "mgd"), (2e-3, 1e-1)),
}
"""Relative difference of a term and of the gradient (by its norm): a gradient in bf16 alone is 2e-3 off;
products in TF32 and fp16, and layers of one or several convolutions in bf16, add theirs."""
QUEUES = 2e-3
"""Largest difference of an entry of a unit vector."""


def in_bf16(output: SegmentationOutput) -> SegmentationOutput:
    logits, aux, feature, _ = output
    assert aux is not None
    return SegmentationOutput(*(x.bfloat16() for x in (logits, aux, feature)))


def moved(inputs: LossInputs, dtype: torch.dtype, device: str) -> LossInputs:
    """The same values in another type and place; the student's maps take gradients."""
    student, teacher = (
        SegmentationOutput(*(x.to(device, dtype) for x in output[:3] if x is not None))
        for output in (inputs.student, inputs.teacher)
    )
    leaves = SegmentationOutput(*(x.requires_grad_() for x in student[:3] if x is not None))
    return replace(inputs, student=leaves, teacher=teacher, labels=inputs.labels.to(device))


def differentiated(loss: DistillationLoss, inputs: LossInputs) -> tuple[dict[str, Tensor], Tensor]:
    """The terms, and the gradient of their sum to all of the student's maps."""
    terms = loss(inputs)
    maps = [x for x in inputs.student[:3] if x is not None]
    gradients = torch.autograd.grad(torch.stack([*terms.values()]).sum(), maps, allow_unused=True)
    joined = torch.cat([g.detach().double().cpu().flatten() for g in gradients if g is not None])
    return {name: value.detach().double().cpu() for name, value in terms.items()}, joined


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", LOSSES.names())
def test_close_to_float64(kind: str, device: str) -> None:
    shape = SIZES[device]
    precise = make_loss(kind, shape, CPU).double()
    loss = copy.deepcopy(precise).float().to(device)
    for module in (precise, loss):
        if module.discriminator is not None:
            module.discriminator.requires_grad_(False)
    inputs = make_inputs(shape, CPU)
    inputs = replace(inputs, student=in_bf16(inputs.student), teacher=in_bf16(inputs.teacher))
    expected, wanted = differentiated(precise, moved(inputs, torch.float64, "cpu"))
    with autocast("bf16", torch.device(device)):
        found, gradient = differentiated(loss, moved(inputs, torch.bfloat16, device))
    of_terms, of_gradient = BOUNDS.get(kind, DEFAULT)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) <= of_terms * abs(value), name
    assert (gradient - wanted).norm() <= of_gradient * wanted.norm()
    for (name, mine), theirs in zip(loss.named_buffers(), precise.buffers(), strict=True):
        assert (mine.double().cpu() - theirs).abs().max() <= QUEUES, name
