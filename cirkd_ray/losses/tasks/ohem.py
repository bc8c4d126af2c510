"""Cross-entropy of the hardest pixels."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from cirkd_ray.config.roles import Mutable
from cirkd_ray.losses.reduce import mask_scale
from cirkd_ray.losses.tasks.base import TASK_LOSSES, PixelTerm
from cirkd_ray.types import IGNORE_INDEX


@TASK_LOSSES.register("ohem")
class OHEM(PixelTerm):
    """Online hard example mining: the mean cross-entropy of pixels whose class has a low probability.

    Shrivastava et al.: Training Region-based Object Detectors with Online Hard Example Mining (CVPR 2016),
    for pixels: those count whose class has a probability of `threshold` at most, and of each image a share
    `least` at least, the hardest. Deviation from usual implementations: the share is of each image and not of
    a rank's batch, so that the loss does not depend on the number of ranks.

    Args:
        threshold: the probability.
        least: the share of an image's labelled pixels.
    """

    of_micro_batch = True

    def __init__(
        self,
        *,
        threshold: Mutable[Annotated[float, Field(gt=0, le=1)]] = 0.7,
        least: Mutable[Annotated[float, Field(gt=0, le=1)]] = 0.0625,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.threshold, self.least = threshold, least

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """See `TaskTerm`."""
        entropy, valid = self.of_pixels(logits, labels).flatten(1), (labels != IGNORE_INDEX).flatten(1)
        with torch.no_grad():
            hardest = entropy.masked_fill(~valid, -1.0).sort(1, descending=True).values
            last = (valid.sum(1, keepdim=True) * self.least).ceil().long().clamp(min=1) - 1
            kept = valid & (entropy >= hardest.gather(1, last).clamp(max=-math.log(self.threshold)))
        total = torch.where(kept, self.weighted(entropy, labels.flatten(1)), 0.0).sum()
        return total * mask_scale(kept).to(total.dtype)
