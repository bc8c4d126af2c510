"""What at does not see."""

from __future__ import annotations

import torch

from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import make_inputs, small_loss


def test_the_scale_of_features_does_not_matter() -> None:
    loss, inputs = small_loss("at"), make_inputs()
    teacher = inputs.teacher._replace(feature=inputs.teacher.feature * 3.0)
    scaled = loss(LossInputs(inputs.student, teacher, inputs.labels))["at"]
    torch.testing.assert_close(scaled, loss(inputs)["at"])
