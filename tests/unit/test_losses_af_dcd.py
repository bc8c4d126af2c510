"""af_dcd against its equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import TEACHER, make_inputs, small_labels, small_loss
from tests.unit.test_losses_mgd import generated, squared_error

SETTINGS = {"pool": 1, "patch": 2, "groups": 4, "temperature": 2.0}


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    student, teacher, labels = generated(loss, inputs), inputs.teacher.feature, small_labels(inputs)
    groups, width = 4, TEACHER // 4
    per_pixel = []
    for n, i, j in (labels != -1).nonzero().tolist():
        top, left = i // 2 * 2, j // 2 * 2
        patch = [(a, b) for a in (top, top + 1) for b in (left, left + 1)]
        terms = []
        for g in range(groups):
            anchor = student[n, g * width : (g + 1) * width, i, j]

            def similarity(
                position: tuple[int, int], group: int, anchor: Tensor = anchor, n: int = n
            ) -> Tensor:
                key = teacher[n, group * width : (group + 1) * width, position[0], position[1]]
                return -(anchor - key).abs().sum() / 2.0

            positive = similarity((i, j), g)
            negatives = [similarity(p, other) for p in patch for other in range(groups) if other != g]
            terms.append(torch.logsumexp(torch.stack([positive, *negatives]), 0) - positive)
        per_pixel.append(torch.stack(terms).sum())
    return {"af_dcd_feature": squared_error(loss, inputs), "af_dcd_contrast": torch.stack(per_pixel).mean()}


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"af_dcd.*groups=3.*8 channels"):
        small_loss("af_dcd", groups=3)


def test_maps_without_a_patch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"af_dcd.*lower pool or patch"):
        small_loss("af_dcd", pool=4, patch=4)(make_inputs())
