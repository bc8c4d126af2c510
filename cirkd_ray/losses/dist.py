"""Distillation from a stronger teacher: correlations instead of exact probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.losses.base import LOSSES, LossInputs, Temperature
from cirkd_ray.losses.groups import Group
from cirkd_ray.losses.maps import LogitLoss, MapPair, pixel_scale, tokens
from cirkd_ray.losses.reduce import all_reduce_grad, masked_mean

EPSILON = 1e-16
"""Added to variances, so that a constant row has correlation 0 and a finite gradient."""


@LOSSES.register("dist")
class DIST(LogitLoss):
    """Inter-class and intra-class relations by Pearson correlation.

    Huang et al.: Knowledge Distillation from A Stronger Teacher (NeurIPS 2022), eqs. 6 to 10: with
    probabilities softmax(x / tau), `dist_inter` is tau^2 times the mean over pixels of 1 - corr(student,
    teacher) over the classes, `dist_intra` tau^2 times the mean over classes of 1 - corr over all pixels of
    the batch.

    The paper speaks of samples; for segmentation, as in its authors' code, a sample is a pixel. Chosen
    here: the intra-class correlation runs over the valid pixels of the global batch (its sums are reduced
    over ranks), so that it does not depend on the number of workers. Ignored pixels are left out
    (`mask_ignored: false` counts them).

    Args:
        temperature: divides the logits before the softmax; higher: softer distributions.
    """

    terms = ("dist_inter", "dist_intra")

    def __init__(self, *, temperature: Temperature = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = temperature

    @classmethod
    def together(cls, active: frozenset[str], settings: Mapping[str, Any]) -> Group:
        return "batch" if "dist_intra" in active else 1

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = (
            tokens((x / self.temperature).softmax(1)).flatten(0, 1) for x in (pair.student, pair.teacher)
        )
        mask = None if pair.mask is None else pair.mask.flatten()
        terms = {}
        if "dist_inter" in self.active:
            scale = pixel_scale(pair.mask, inputs)
            terms["dist_inter"] = masked_mean(1.0 - _row_correlation(student, teacher), mask, scale)
        if "dist_intra" in self.active:
            terms["dist_intra"] = _intra(student, teacher, mask)
        return {name: value * self.temperature**2 for name, value in terms.items()}


def _row_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of each row of a with that row of b."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return _correlation((a * b).sum(1), a.square().sum(1), b.square().sum(1))


def _intra(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over columns of 1 - their correlation over the valid rows of all ranks; 0 without a valid row."""
    weight = torch.ones_like(a[:, :1]) if mask is None else mask.to(a.dtype).unsqueeze(1)
    count = all_reduce_grad(weight.sum())
    both = torch.cat([a, b], 1)
    mean = all_reduce_grad((both * weight).sum(0)) / count.clamp(min=1.0)
    a, b = ((both - mean) * weight).chunk(2, 1)
    covariance, var_a, var_b = all_reduce_grad(torch.stack([(a * b).sum(0), (a * a).sum(0), (b * b).sum(0)]))
    distance: Tensor = (1.0 - _correlation(covariance, var_a, var_b)).mean() * count.clamp(max=1.0)
    return distance


def _correlation(covariance: Tensor, var_a: Tensor, var_b: Tensor) -> Tensor:
    """Covariances over the roots of the variances; 0 where a variance is 0."""
    # One root after the other: the gradient of the root of a product of two small variances is infinite in
    # float32.
    return covariance * torch.rsqrt(var_a + EPSILON) * torch.rsqrt(var_b + EPSILON)
