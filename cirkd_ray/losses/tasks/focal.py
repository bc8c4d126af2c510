"""Focal loss."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from cirkd_ray.config.roles import Mutable
from cirkd_ray.losses.tasks.base import TASK_LOSSES, PixelTerm


@TASK_LOSSES.register("focal")
class Focal(PixelTerm):
    """Mean over pixels of -w_y (1 - p_y)^gamma log p_y: pixels that are told well count less.

    Lin et al.: Focal Loss for Dense Object Detection (ICCV 2017), eq. 5, with the softmax in the place of
    their sigmoid. With gamma = 0 it is the cross-entropy.

    Args:
        gamma: how much less.
    """

    def __init__(self, *, gamma: Mutable[Annotated[float, Field(ge=0)]] = 2.0, **common: Any) -> None:
        super().__init__(**common)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """See `TaskTerm`."""
        entropy = self.of_pixels(logits, labels)
        # The bound keeps the gradient finite where a pixel is certain and gamma is below 1.
        missing = (1.0 - (-entropy).exp()).clamp(min=1e-6)
        total = self.weighted(missing**self.gamma * entropy, labels).sum()
        return total * scale.to(total.dtype)
