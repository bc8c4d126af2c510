"""What ifvd divides by."""

from __future__ import annotations

import torch

from cirkd_ray.bench._losses_naive import ifvd
from tests.contract.loss_cases import make_inputs, small_labels, small_loss


def test_masked_mean_divides_by_valid_pixels() -> None:
    loss, inputs = small_loss("ifvd", mask_ignored=True), make_inputs()
    share = (small_labels(inputs) != -1).double().mean()
    assert share < 1
    torch.testing.assert_close(loss(inputs)["ifvd"], ifvd(loss, inputs)["ifvd"] / share, rtol=1e-5, atol=1e-9)
