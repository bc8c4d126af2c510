"""dsd of networks without an auxiliary head."""

from __future__ import annotations

import torch

from cirkd_ray.losses import LossInputs
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import make_inputs, small_loss


def test_without_auxiliary_head_the_logits_stand_in() -> None:
    inputs = make_inputs()
    student, teacher = (o._replace(aux=None) for o in (inputs.student, inputs.teacher))
    twice = [o._replace(aux=o.logits) for o in (inputs.student, inputs.teacher)]
    loss = small_loss("dsd", active=frozenset({"psd"}))
    a = loss(LossInputs(student, teacher, inputs.labels))["psd"]
    b = loss(LossInputs(*twice, inputs.labels))["psd"]
    assert torch.equal(a, b)
    assert bool(a.isfinite())


def test_student_without_auxiliary_head_learns_from_a_teacher_with_one() -> None:
    """Where first and last map are one, the gradient of float32 must not drown in that pair's."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        # The same numbers in both types: drawn in the smaller one.
        inputs = make_inputs(dtype=torch.float32)
        logits = inputs.student.logits.detach().to(dtype).requires_grad_()
        student = SegmentationOutput(logits, None, inputs.student.feature.detach().to(dtype))
        teacher = SegmentationOutput(*(t.to(dtype) for t in inputs.teacher[:3]))
        loss = small_loss("dsd", active=frozenset({"psd"})).to(dtype)
        loss(LossInputs(student, teacher, inputs.labels))["psd"].backward()
        assert logits.grad is not None
        gradients.append(logits.grad.double())
    assert float(gradients[1].abs().max()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
