"""Double similarity distillation."""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.at import attention
from cirkd_ray.losses.base import LOSSES, LossInputs, Temperature
from cirkd_ray.losses.maps import MapLoss, MapPair, full_precision, pixel_scale, resize_map, tap_map, unit
from cirkd_ray.losses.reduce import masked_mean
from cirkd_ray.losses.relational import MASKED
from cirkd_ray.types import SegmentationOutput


@LOSSES.register("dsd")
class DSD(MapLoss):
    """Pixel-wise (psd) and category-wise (csd) similarity distillation.

    Feng et al.: Double Similarity Distillation for Semantic Image Segmentation (IEEE TIP 2021), sections
    III-B, III-C. psd: of three maps (the auxiliary logits, or the logits again where a network has none;
    the feature; the logits) the attention maps of `at`; the differences of each two, L2-normalised again;
    mean square between teacher and student, averaged over the pairs. csd: logits averaged over 2 x 2
    pixels, softmax over the pixels at temperature tau, the K x K matrix of the channels' inner products;
    mean square.

    `student_tap` and `teacher_tap` name the map that stands in the place of the feature.

    Deviation from the reference: ignored pixels are left out of maps, means and softmax (`mask_ignored:
    false` counts them).

    Args:
        temperature: tau of `csd`.
    """

    terms = ("psd", "csd")
    default_weights: ClassVar = {"psd": 1000.0, "csd": 10.0}
    adapted: ClassVar = "never"

    def __init__(self, *, temperature: Temperature = 4.0, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = temperature

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        tap_map(self.kind, "teacher", inputs.teacher, "logits", self.num_classes)  # both terms need them
        terms = {}
        if "psd" in self.active:
            student = self._residuals(inputs.student, pair.student, pair.mask)
            teacher = self._residuals(inputs.teacher, pair.teacher, pair.mask)
            mask, scale = None if pair.mask is None else pair.mask.flatten(1), pixel_scale(pair.mask, inputs)
            errors = [
                masked_mean((s - t.detach()).square(), mask, scale)
                for s, t in zip(student, teacher, strict=True)
            ]
            terms["psd"] = sum(errors[1:], errors[0]) / len(errors)
        if "csd" in self.active:
            size = (pair.student.shape[-2], pair.student.shape[-1])
            student_gram, teacher_gram = (
                self._gram(resize_map(full_precision(output.logits), size), pair.mask)
                for output in (inputs.student, inputs.teacher)
            )
            terms["csd"] = (student_gram - teacher_gram.detach()).square().mean()
        return terms

    @property
    def reads_teacher_aux(self) -> bool:
        """Always: it is the first of the three maps."""
        return True

    def _residuals(self, output: SegmentationOutput, middle: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Normalised differences (N x HW) of each two of the three attention maps."""
        first = output.logits if output.aux is None else output.aux
        size = (middle.shape[-2], middle.shape[-1])
        outer = (resize_map(full_precision(x), size) for x in (first, output.logits))
        maps = [attention(x, mask) for x in (next(outer), middle, next(outer))]
        residuals = [unit(a - b) for a, b in combinations(maps, 2)]
        if output.aux is None:
            # First and last are one map. The gradient of normalising their difference, 0, would be the whole
            # gradient over an epsilon, once with each sign: in float32 all others are lost in it.
            residuals[1] = torch.zeros_like(maps[0])
        return residuals

    def _gram(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """N x K x K inner products of the class channels' softmax over the pooled pixels."""
        if mask is None:
            x = F.avg_pool2d(logits, 2, ceil_mode=True).flatten(2) / self.temperature
        else:
            share = F.avg_pool2d(mask.to(logits.dtype).unsqueeze(1), 2, ceil_mode=True)
            x = F.avg_pool2d(logits.masked_fill(~mask.unsqueeze(1), 0.0), 2, ceil_mode=True)
            x = x / share.clamp(min=0.25) / self.temperature
            x = x.masked_fill(share == 0, MASKED).flatten(2)
        probability = x.softmax(2)
        return probability @ probability.transpose(1, 2)
