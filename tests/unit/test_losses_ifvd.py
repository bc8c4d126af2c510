"""ifvd against its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import make_inputs, small_labels, small_loss


def similarities(x: Tensor, labels: Tensor) -> list[Tensor]:
    """Cosine of each valid pixel's feature and its class's mean, of one image."""
    result = []
    for i, j in (labels != -1).nonzero().tolist():
        members = (labels == labels[i, j]).nonzero().tolist()
        centre = torch.stack([x[:, a, b] for a, b in members]).mean(0)
        result.append(x[:, i, j] @ centre / (x[:, i, j].norm() * centre.norm()))
    return result


def squares(inputs: LossInputs) -> list[Tensor]:
    values = []
    for s, t, labels in zip(
        inputs.student.feature, inputs.teacher.feature, small_labels(inputs), strict=True
    ):
        pairs = zip(similarities(s, labels), similarities(t, labels), strict=True)
        values += [(a - b) ** 2 for a, b in pairs]
    return values


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    return {"ifvd": torch.stack(squares(inputs)).sum() / small_labels(inputs).numel()}


def test_masked_mean_divides_by_valid_pixels() -> None:
    inputs = make_inputs()
    value = small_loss("ifvd", mask_ignored=True)(inputs)["ifvd"]
    torch.testing.assert_close(value, torch.stack(squares(inputs)).mean(), rtol=1e-5, atol=1e-9)
