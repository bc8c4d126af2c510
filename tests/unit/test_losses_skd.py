"""skd at its best."""

from __future__ import annotations

from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import make_inputs, small_loss


def test_a_perfect_student_costs_nothing() -> None:
    inputs = make_inputs()
    teacher = inputs.student._replace(feature=inputs.student.feature.detach())
    loss = small_loss("skd", teacher_tap="logits", student_tap="logits")
    value = loss(
        LossInputs(inputs.student, teacher._replace(logits=inputs.student.logits.detach()), inputs.labels)
    )
    assert abs(value["skd"].item()) < 1e-12
