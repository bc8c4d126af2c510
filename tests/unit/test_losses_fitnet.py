"""fitnet against its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import small_labels, small_loss


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    weight = loss.adapter.weight[:, :, 0, 0]
    squares = []
    for n, i, j in (small_labels(inputs) != -1).nonzero().tolist():
        difference = weight @ inputs.student.feature[n, :, i, j] - inputs.teacher.feature[n, :, i, j]
        squares.append(difference.square().mean())
    return {"fitnet": torch.stack(squares).mean()}


def test_adapter_is_there_for_equal_widths_too() -> None:
    loss = small_loss("fitnet", student_tap="logits", teacher_tap="logits")
    assert isinstance(loss.adapter, torch.nn.Conv2d)
    assert loss.adapter.bias is None
