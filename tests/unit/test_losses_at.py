"""at against its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import small_labels


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    squares = []
    for s, t, labels in zip(
        inputs.student.feature, inputs.teacher.feature, small_labels(inputs), strict=True
    ):
        spots = (labels != -1).nonzero().tolist()
        maps = []
        for x in (s, t):
            energy = torch.stack([(x[:, i, j] ** 2).mean() for i, j in spots])
            maps.append(energy / energy.square().sum().sqrt())
        squares += [(maps[0] - maps[1]).square()]
    return {"at": torch.cat(squares).mean()}
