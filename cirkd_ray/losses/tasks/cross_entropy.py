"""Cross-entropy with the labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.tasks.base import TASK_LOSSES, PixelTerm
from cirkd_ray.types import IGNORE_INDEX


@TASK_LOSSES.register("cross_entropy")
class CrossEntropy(PixelTerm):
    """Mean over pixels of -w_y log p_y, p = softmax of the scores; the loss of all published recipes."""

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """See `TaskTerm`."""
        # CUDA's summed form adds in no fixed order and refuses where that is not allowed.
        fixed_order = logits.is_cuda and torch.are_deterministic_algorithms_enabled()
        if fixed_order or self.weights is not None:
            total = self.weighted(self.of_pixels(logits, labels), labels).sum()
        else:
            total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return total * scale.to(total.dtype)
