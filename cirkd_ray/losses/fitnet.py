"""Feature imitation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cirkd_ray.losses.base import LOSSES, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair, pixel_scale
from cirkd_ray.losses.reduce import masked_mean


@LOSSES.register("fitnet")
class FitNet(MapLoss):
    """Hint-based imitation of features.

    Romero et al.: FitNets: Hints for Thin Deep Nets (ICLR 2015), eq. 3: the mean square of `adapter(S) -
    T`; the adapter is a 1x1 convolution without bias, also where the channels agree.

    Deviation from the reference: ignored pixels are left out (`mask_ignored: false` counts them).
    """

    terms = ("fitnet",)
    default_weights: ClassVar = {"fitnet": 10.0}
    adapted: ClassVar = "always"

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        mask = None if pair.mask is None else pair.mask.unsqueeze(1)
        scale = pixel_scale(pair.mask, inputs)
        scale = None if scale is None else scale / self.teacher_width
        return {"fitnet": masked_mean((pair.student - pair.teacher).square(), mask, scale)}
