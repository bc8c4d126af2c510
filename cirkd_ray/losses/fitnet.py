"""Feature imitation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cirkd_ray.losses.base import LOSSES, Channels, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair
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

    def __init__(
        self,
        *,
        student_channels: Channels,
        teacher_channels: Channels,
        num_classes: int,
        student_tap: str = "feature",
        teacher_tap: str = "feature",
        mask_ignored: bool = True,
    ) -> None:
        super().__init__(
            student_channels,
            teacher_channels,
            num_classes,
            student_tap=student_tap,
            teacher_tap=teacher_tap,
            mask_ignored=mask_ignored,
            adapter="always",
        )

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        mask = None if pair.mask is None else pair.mask.unsqueeze(1)
        return {"fitnet": masked_mean((pair.student - pair.teacher).square(), mask)}
