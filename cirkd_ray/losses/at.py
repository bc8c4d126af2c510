"""Attention transfer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cirkd_ray.losses.base import LOSSES, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair, pixel_scale, unit
from cirkd_ray.losses.reduce import masked_mean


@LOSSES.register("at")
class AttentionTransfer(MapLoss):
    """Attention transfer between features.

    Zagoruyko, Komodakis: Paying More Attention to Attention (ICLR 2017), eq. 2 with p = 2: an image's
    attention map is `mean_C(x^2)`, L2-normalised over its pixels; the loss is the mean square of the
    difference.

    Deviation from the reference: ignored pixels are taken out of the maps before they are normalised, and out
    of the mean (`mask_ignored: false` counts them).
    """

    terms = ("at",)
    default_weights: ClassVar = {"at": 10_000.0}
    adapted: ClassVar = "never"

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = attention(pair.student, pair.mask), attention(pair.teacher, pair.mask)
        mask = None if pair.mask is None else pair.mask.flatten(1)
        return {"at": masked_mean((student - teacher).square(), mask, pixel_scale(pair.mask, inputs))}


def attention(x: Tensor, mask: Tensor | None) -> Tensor:
    """N x HW: the mean square over channels of x (N x C x H x W), L2-normalised over the valid pixels."""
    energy = x.square().mean(1)
    if mask is not None:
        energy = energy.masked_fill(~mask, 0.0)
    return unit(energy.flatten(1))
