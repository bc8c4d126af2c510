"""What cwd does not see, and its adapter."""

from __future__ import annotations

import torch
from torch import nn

from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import TEACHER, make_inputs, small_loss


def test_the_level_of_a_channel_does_not_matter() -> None:
    loss, inputs = small_loss("cwd"), make_inputs()
    level = torch.arange(TEACHER, dtype=torch.float64).view(1, -1, 1, 1)
    teacher = inputs.teacher._replace(feature=inputs.teacher.feature + level)
    moved = loss(LossInputs(inputs.student, teacher, inputs.labels))["cwd"]
    torch.testing.assert_close(moved, loss(inputs)["cwd"])


def test_an_adapter_is_there_only_where_channels_differ() -> None:
    assert isinstance(small_loss("cwd").adapter, nn.Conv2d)
    assert isinstance(small_loss("cwd", student_tap="logits", teacher_tap="logits").adapter, nn.Identity)
