"""dist against its equations."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import small_labels

SETTINGS = {"temperature": 2.0}


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    tau = SETTINGS["temperature"]
    spots = (small_labels(inputs) != -1).nonzero().tolist()
    student, teacher = (
        torch.stack([torch.softmax(o.logits[n, :, i, j] / tau, 0) for n, i, j in spots])
        for o in (inputs.student, inputs.teacher)
    )

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 1 - torch.corrcoef(torch.stack([a, b]))[0, 1]

    inter = [distance(a, b) for a, b in zip(student, teacher, strict=True)]
    intra = [distance(a, b) for a, b in zip(student.T, teacher.T, strict=True)]
    return {
        "dist_inter": tau**2 * torch.stack(inter).mean(),
        "dist_intra": tau**2 * torch.stack(intra).mean(),
    }
