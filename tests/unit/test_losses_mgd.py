"""The holes of mgd."""

from __future__ import annotations

from dataclasses import replace

import torch

from cirkd_ray.losses.hashing import pixel_bits
from tests.contract.loss_cases import make_inputs, small_loss


def test_holes_change_with_the_step_alone() -> None:
    loss = small_loss("mgd")
    inputs = make_inputs()
    values = [loss(replace(inputs, step=step))["mgd"].item() for step in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_share_of_holes() -> None:
    bits = pixel_bits(4, 10_000, 0, torch.device("cpu"), "mask", 0, 0, 0)
    assert abs(float((bits / 2**32 < 0.75).double().mean()) - 0.75) < 0.01
