"""mgd against its equation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.losses.hashing import pixel_bits
from tests.contract.loss_cases import make_inputs, small_labels, small_loss


def generated(loss: DistillationLoss, inputs: LossInputs) -> Tensor:
    """The generated map: the adapted feature with holes, through the two convolutions."""
    x = loss.adapter(inputs.student.feature)
    n, _, h, w = x.shape
    bits = pixel_bits(n, h * w, 0, x.device, "mask", inputs.seed, inputs.step, inputs.micro)
    kept = (bits.view(n, 1, h, w) / 2**32 >= loss.generator.mask_ratio).to(x.dtype)
    first, _, second = loss.generator.layers
    return second(torch.relu(first(x * kept)))


def squared_error(loss: DistillationLoss, inputs: LossInputs) -> Tensor:
    valid = (small_labels(inputs) != -1).unsqueeze(1)
    square = (generated(loss, inputs) - inputs.teacher.feature) ** 2
    return (square * valid).sum() / len(square)


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    return {"mgd": squared_error(loss, inputs)}


def test_holes_change_with_the_step_alone() -> None:
    loss = small_loss("mgd")
    inputs = make_inputs()
    values = [loss(replace(inputs, step=step))["mgd"].item() for step in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_share_of_holes() -> None:
    bits = pixel_bits(4, 10_000, 0, torch.device("cpu"), "mask", 0, 0, 0)
    assert abs(float((bits / 2**32 < 0.75).double().mean()) - 0.75) < 0.01
