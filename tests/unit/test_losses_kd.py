"""kd of standardised logits."""

from __future__ import annotations

import torch

from cirkd_ray.bench._losses_naive import kd
from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import make_inputs, small_loss

SETTINGS = {"temperature": 2.0}


def test_logit_standardisation_ignores_scale_and_shift() -> None:
    inputs = make_inputs()
    loss = small_loss("kd", logit_std=True)
    moved = inputs.student._replace(logits=inputs.student.logits * 3.0 + 5.0)
    a, b = (loss(LossInputs(s, inputs.teacher, inputs.labels))["kd"] for s in (inputs.student, moved))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_logit_standardisation_is_that_of_the_equation() -> None:
    loss, inputs = small_loss("kd", logit_std=True), make_inputs()
    torch.testing.assert_close(loss(inputs)["kd"], kd(loss, inputs)["kd"], rtol=1e-6, atol=1e-9)
