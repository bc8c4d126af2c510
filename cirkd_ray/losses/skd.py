"""Structured knowledge distillation: pair-wise similarities."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, AtLeastOne, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair, pool_mask, unit


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
        student, teacher = (self._pooled(x, pair.mask, inputs) for x in (pair.student, pair.teacher))
        total = _gram(student, student) + _gram(teacher, teacher) - 2.0 * _gram(student, teacher)
        if pair.mask is None:
            images, pixels = len(student), student[0, 0].numel()
            return {"skd": (total / (images * pixels**2)).to(pair.student.dtype)}
        size = (*pair.mask.shape[-2:],)
        scale = inputs.step_batch.scale(size, pool_mask, self.pool, count=_pairs)
        return {"skd": (total * scale).to(pair.student.dtype)}

    def _pooled(self, x: Tensor, mask: Tensor | None, inputs: LossInputs) -> Tensor:
        """Pooled, normalised map, 0 where no pixel counts."""
        if mask is None:
            return unit(F.max_pool2d(x, self.pool, ceil_mode=True))
        x = F.max_pool2d(x.masked_fill(~mask.unsqueeze(1), float("-inf")), self.pool, ceil_mode=True)
        valid = inputs.mask((*mask.shape[-2:],), pool_mask, self.pool)
        return unit(x.masked_fill(~valid.unsqueeze(1), 0.0))


def _pairs(valid: Tensor) -> Tensor:
    """Pairs of pixels (N x h x w) that count in the same image."""
    return valid.sum((1, 2)).square().sum()


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Sum over images of the squared Frobenius norm of A^T B, for maps as HW x C matrices."""
    return (a.flatten(2).double() @ b.flatten(2).double().transpose(1, 2)).square().sum()
