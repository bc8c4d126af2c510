"""What a supervised loss is: a module that turns scores and labels of equal size into one scalar."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cirkd_ray.config import registry
from cirkd_ray.errors import ConfigError
from cirkd_ray.types import IGNORE_INDEX

TASK_LOSSES: registry.Registry[TaskTerm] = registry.TASK_LOSSES
ClassWeights = Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None
"""`balanced`: in inverse proportion to the classes' pixels; or a number a class, in their order."""


class TaskTerm(nn.Module):
    """Base of every supervised loss; its settings are its keyword-only arguments that have a default.

    Args:
        num_classes: of the data set.
        shares: K, each class's share of the labelled pixels of the training split, where the recipe asks
            for it.
    """

    of_micro_batch: ClassVar = False
    """Whether it is a mean over pixels that are known in the forward pass alone, and so of a micro-batch."""

    def __init__(self, *, num_classes: int, shares: Tensor | None) -> None:
        super().__init__()
        self.num_classes, self.shares = num_classes, shares

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """A scalar over the global batch, 0 and differentiable where every pixel is ignored.

        Args:
            logits: N x K x H x W.
            labels: N x H x W int64, `IGNORE_INDEX` where a pixel does not count.
            scale: `mask_scale` of the labels that count: it makes a local sum over them a mean over the
                global batch.
        """
        raise NotImplementedError


class PixelTerm(TaskTerm):
    """Base of losses of single pixels.

    Args:
        class_weights: factors of the classes' pixels. The mean is over pixels, not over their weights (as
            PyTorch's is): `balanced` weights, 1 / (K share), have the mean 1 over the training split.
    """

    weights: Tensor | None

    def __init__(self, *, class_weights: ClassWeights = None, **common: Any) -> None:
        super().__init__(**common)
        values: Tensor | None = None
        if class_weights == "balanced" and self.shares is not None:
            values = balanced(self.shares)
        elif isinstance(class_weights, tuple | list):
            values = torch.tensor(class_weights, dtype=torch.float32)
            if len(values) != self.num_classes:
                raise ConfigError(
                    f"class_weights: {len(values)} numbers for {self.num_classes} classes; give one a class"
                )
        self.register_buffer("weights", values, persistent=False)

    def of_pixels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """N x H x W cross-entropies in float32 (or more), 0 where ignored, without class weights."""
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")

    def weighted(self, values: Tensor, labels: Tensor) -> Tensor:
        """N x H x W values of pixels, each times its class's weight."""
        if self.weights is None:
            return values
        return values * self.weights.to(values.dtype)[labels.clamp(min=0)]


def balanced(shares: Tensor) -> Tensor:
    """Weights 1 / (K share) of K classes; 1 for those that do not occur."""
    return torch.where(shares > 0, 1.0 / (len(shares) * shares.clamp(min=1e-12)), 1.0).to(torch.float32)


def scores_of(logits: Tensor) -> Tensor:
    """N x K x P probabilities in float32 (or more), whatever autocast does."""
    with torch.autocast(logits.device.type, enabled=False):
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide).softmax(1).flatten(2)
