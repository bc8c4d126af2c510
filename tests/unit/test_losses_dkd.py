"""dkd is a decomposition of kd."""

from __future__ import annotations

import torch

from cirkd_ray.bench._losses_naive import both, labels_of
from tests.contract.loss_cases import make_inputs, small_loss

SETTINGS = {"temperature": 2.0}


def test_the_parts_make_up_kd() -> None:
    """The paper's eq. 7: KD = TCKD + (1 - p_target of the teacher) NCKD, of one pixel."""
    inputs = make_inputs()
    labels = inputs.labels.clone()
    labels[:] = -1
    labels[0, :4, :4] = inputs.labels[0, :4, :4].clamp(min=0)
    inputs = type(inputs)(inputs.student, inputs.teacher, labels)
    _, teacher = (torch.cat(x)[0] for x in both(inputs, "logits"))
    target = (teacher / 2.0).softmax(0)[labels_of(teacher.view(1, -1, 1, 1), inputs)[0, 0, 0]]
    parts, whole = small_loss("dkd")(inputs), small_loss("kd")(inputs)["kd"]
    torch.testing.assert_close(parts["tckd"] + (1 - target) * parts["nckd"], whole)
