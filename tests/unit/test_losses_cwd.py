"""cwd against its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import STUDENT, small_labels


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    tau = 4.0
    student = torch.einsum("oc,nchw->nohw", loss.adapter.weight[:, :, 0, 0], inputs.student.feature)
    total = student.new_zeros(())
    for n, labels in enumerate(small_labels(inputs)):
        valid = labels != -1
        for c in range(student.shape[1]):
            p = torch.softmax(inputs.teacher.feature[n, c][valid] / tau, 0)
            q = torch.softmax(student[n, c][valid] / tau, 0)
            total = total + (p * (p / q).log()).sum()
    return {"cwd": tau**2 * total / (len(student) * STUDENT)}
