"""Dice loss."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from cirkd_ray.losses.tasks.base import TASK_LOSSES, TaskTerm, scores_of


@TASK_LOSSES.register("dice")
class Dice(TaskTerm):
    """1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s), mean over the classes of each image and over images.

    After Milletari et al.: V-Net (3DV 2016), with sums in the place of their sums of squares. p: probability
    of a class, y: 1 where it is the label; both at labelled pixels alone. A class that an image does not show
    does not count for it. Images have equal weights, so the loss does not depend on the number of ranks.

    Args:
        smooth: s, in pixels.
    """

    def __init__(self, *, smooth: Annotated[float, Field(gt=0)] = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.smooth = smooth

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """See `TaskTerm`."""
        scores, flat = scores_of(logits), labels.flatten(1).unsqueeze(1)
        valid = (flat >= 0).to(scores.dtype)
        right = scores.gather(1, flat.clamp(min=0)) * valid
        shown = scores.new_zeros(scores.shape[:2]).scatter_add_(1, flat[:, 0].clamp(min=0), valid[:, 0])
        both = scores.new_zeros(scores.shape[:2]).scatter_add(1, flat[:, 0].clamp(min=0), right[:, 0])
        dice = (2 * both + self.smooth) / ((scores * valid).sum(2) + shown + self.smooth)
        present = (shown > 0).to(scores.dtype)
        return (((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)).mean()
