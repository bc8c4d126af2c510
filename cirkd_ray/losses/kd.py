"""Pixel-wise distillation of class probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, LossInputs, Temperature
from cirkd_ray.losses.maps import LogitLoss, MapPair, pixel_scale
from cirkd_ray.losses.reduce import masked_mean


@LOSSES.register("kd")
class KD(LogitLoss):
    """Knowledge distillation of each pixel's class distribution.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015), section 2, per pixel:
    `tau^2 * KL(softmax(T / tau) || softmax(S / tau))` over the classes of the logits, mean over pixels.

    `logit_std` standardises the logits of each pixel over the classes first, `Z(x) = (x - mean) / std` (Sun
    et al., Logit Standardization in Knowledge Distillation, CVPR 2024, eq. 11), so that the student need
    not match the teacher's logit range. The deviation is the population's, with 1e-7 added, as in the
    authors' algorithm 1; the paper leaves tau^2 as the weight, which is the same product here.

    Deviation from the reference: ignored pixels are left out (`mask_ignored: false` counts them, as the
    reference does).

    Args:
        temperature: divides the logits before the softmax; higher: softer distributions.
        logit_std: standardise each pixel's logits first (above).
    """

    terms = ("kd",)

    def __init__(self, *, temperature: Temperature = 1.0, logit_std: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.temperature, self.logit_std = temperature, logit_std

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = (
            (standardize(x) if self.logit_std else x) / self.temperature for x in (pair.student, pair.teacher)
        )
        divergence = F.kl_div(
            student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        scale = pixel_scale(pair.mask, inputs)
        return {"kd": masked_mean(divergence, pair.mask, scale) * self.temperature**2}


def standardize(logits: Tensor) -> Tensor:
    """Zero mean and unit deviation over dimension 1."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True, unbiased=False) + 1e-7)
