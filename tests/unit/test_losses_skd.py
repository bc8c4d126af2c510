"""skd against the matrices that it never forms."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import make_inputs, small_labels, small_loss


def pooled(x: Tensor, labels: Tensor) -> list[Tensor]:
    """Unit vectors of the 2 x 2 maxima over valid pixels of one image."""
    vectors = []
    for i in range(0, x.shape[1], 2):
        for j in range(0, x.shape[2], 2):
            spots = [(a, b) for a in (i, i + 1) for b in (j, j + 1) if int(labels[a, b]) != -1]
            if spots:
                v = torch.stack([x[:, a, b] for a, b in spots]).amax(0)
                vectors.append(v / v.norm())
    return vectors


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    squares = []
    for s, t, labels in zip(
        inputs.student.feature, inputs.teacher.feature, small_labels(inputs), strict=True
    ):
        a, b = pooled(s, labels), pooled(t, labels)
        squares += [(a[m] @ a[n] - b[m] @ b[n]) ** 2 for m in range(len(a)) for n in range(len(a))]
    return {"skd": torch.stack(squares).mean()}


def test_a_perfect_student_costs_nothing() -> None:
    inputs = make_inputs()
    teacher = inputs.student._replace(feature=inputs.student.feature.detach())
    loss = small_loss("skd", teacher_tap="logits", student_tap="logits")
    value = loss(
        LossInputs(inputs.student, teacher._replace(logits=inputs.student.logits.detach()), inputs.labels)
    )
    assert abs(value["skd"].item()) < 1e-12
