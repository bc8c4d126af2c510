"""Structured knowledge distillation: pair-wise similarities."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, AtLeastOne, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair, pool_mask, unit
from cirkd_ray.losses.reduce import global_scale


@LOSSES.register("skd")
class PairwiseSKD(MapLoss):
    """Pair-wise distillation.

    Liu et al.: Structured Knowledge Distillation for Semantic Segmentation (CVPR 2019), eqs. 2 and 3: maps
    are max-pooled over p x p pixels, L2-normalised over channels, and the mean square of the difference of
    the HW x HW cosine matrices of each image is taken. The paper's holistic term is the loss `adversarial`.

    The matrices are never formed: with A = F_s F_s^T and B = F_t F_t^T, ||A - B||^2 is
    ||F_s^T F_s||^2 + ||F_t^T F_t||^2 - 2 ||F_s^T F_t||^2, which costs HW x C^2 instead of HW^2 x C. The C x
    C products are in float64, since the three terms nearly cancel for a good student.

    Deviation from the reference: ignored pixels are left out; a pooled pixel counts if any of its pixels does
    (`mask_ignored: false` counts all).

    Args:
        pool: p, pixels a side of the max-pooling.
    """

    terms = ("skd",)
    default_weights: ClassVar = {"skd": 10.0}
    adapted: ClassVar = "never"

    def __init__(self, *, pool: AtLeastOne = 2, **common: Any) -> None:
        super().__init__(**common)
        self.pool = pool

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, valid = self._pooled(pair.student, pair.mask)
        teacher, _ = self._pooled(pair.teacher, pair.mask)
        total = _gram(student, student) + _gram(teacher, teacher) - 2.0 * _gram(student, teacher)
        pairs = valid.sum((1, 2)).square().sum()
        return {"skd": (total * global_scale(pairs)).to(pair.student.dtype)}

    def _pooled(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pooled, normalised map, 0 where no pixel counts; and which pooled pixels (N x h x w) count."""
        if mask is None:
            x = F.max_pool2d(x, self.pool, ceil_mode=True)
            return unit(x), torch.ones_like(x[:, 0], dtype=torch.bool)
        x = F.max_pool2d(x.masked_fill(~mask.unsqueeze(1), float("-inf")), self.pool, ceil_mode=True)
        valid = pool_mask(mask, self.pool)
        return unit(x.masked_fill(~valid.unsqueeze(1), 0.0)), valid


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Sum over images of the squared Frobenius norm of A^T B, for maps as HW x C matrices."""
    return (a.flatten(2).double() @ b.flatten(2).double().transpose(1, 2)).square().sum()
