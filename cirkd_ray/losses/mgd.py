"""Masked generative distillation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from cirkd_ray.losses.base import LOSSES, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair


class MaskedGenerator(nn.Module):
    """Two 3x3 convolutions that rebuild the teacher's map from a student's map with random holes."""

    def __init__(self, channels: int, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, inputs: LossInputs) -> Tensor:
        """x: N x C x H x W; the holes are a function of (seed, step, image in the global batch)."""
        images, _, height, width = x.shape
        bits = inputs.bits("mask", images, height * width, x.device)
        hidden = (bits < int(self.mask_ratio * 2**32)).view(images, 1, height, width)
        generated: Tensor = self.layers(x.masked_fill(hidden, 0.0))
        return generated


def imitation_error(generated: Tensor, pair: MapPair) -> Tensor:
    """Squared error summed over channels and valid pixels, mean over images."""
    square = (generated - pair.teacher).square()
    if pair.mask is not None:
        square = square.masked_fill(~pair.mask.unsqueeze(1), 0.0)
    return square.sum() / square.shape[0]


@LOSSES.register("mgd")
class MGD(MapLoss):
    """Masked generative distillation of features.

    Yang et al.: Masked Generative Distillation (ECCV 2022), eqs. 3 to 5: random pixels of the (adapted)
    student's feature are set to 0, two 3x3 convolutions with a ReLU between generate the teacher's feature,
    and the squared error is summed over channels and pixels, mean over images. Segmentation in the paper:
    ratio 0.75, weight 2e-5.

    Chosen here: the adapter has no bias, and is there only where channels differ. Ignored pixels are left
    out of the sum (`mask_ignored: false` counts them), but still feed the generator.

    Args:
        mask_ratio: share of the student's pixels that are set to 0.
    """

    terms = ("mgd",)
    default_weights: ClassVar = {"mgd": 2e-5}

    def __init__(self, *, mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75, **common: Any) -> None:
        super().__init__(**common)
        self.generator = MaskedGenerator(self.teacher_width, mask_ratio)

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        return {"mgd": imitation_error(self.generator(pair.student, inputs), pair)}
