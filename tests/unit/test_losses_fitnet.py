"""The adapter of fitnet."""

from __future__ import annotations

import torch

from tests.contract.loss_cases import small_loss


def test_adapter_is_there_for_equal_widths_too() -> None:
    loss = small_loss("fitnet", student_tap="logits", teacher_tap="logits")
    assert isinstance(loss.adapter, torch.nn.Conv2d)
    assert loss.adapter.bias is None
