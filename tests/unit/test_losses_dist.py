"""dist at its best."""

from __future__ import annotations

from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import make_inputs, small_loss, total

SETTINGS = {"temperature": 2.0}


def test_a_perfect_student_costs_nothing() -> None:
    inputs = make_inputs()
    teacher = inputs.teacher._replace(logits=inputs.student.logits.detach())
    assert abs(total(small_loss("dist")(LossInputs(inputs.student, teacher, inputs.labels))).item()) < 1e-9
