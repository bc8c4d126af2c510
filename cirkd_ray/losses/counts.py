"""Valid labels, counted over ranks in one message before the forward pass and not in several inside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cirkd_ray.losses.base import LossInputs
from cirkd_ray.losses.maps import resize_labels
from cirkd_ray.losses.reduce import global_scale, mask_scale, rank_and_world
from cirkd_ray.types import IGNORE_INDEX


class Counted(NamedTuple):
    """What one message brought.

    Attributes:
        scale: `mask_scale` of the labels as they are.
        labels: those.
        resized: labels at the size of a map, their mask and its `mask_scale`, by size.
    """

    scale: Tensor
    labels: Tensor
    resized: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]

    def tell(self, inputs: LossInputs) -> None:
        """Let the losses of a step find it where they share what they make."""
        for size, (labels, mask, scale) in self.resized.items():
            inputs.know(resize_labels, (self.labels, size), labels)
            inputs.know(torch.ne, (labels, inputs.ignore_index), mask)
            inputs.know(mask_scale, (mask,), scale)


class CountsAhead:
    """Counts the labels of each step at the sizes at which the losses of the step before looked at them."""

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []

    def count(self, labels: Tensor) -> Counted | None:
        """The counts of N x H x W labels; None where there are no other ranks to ask."""
        if rank_and_world()[1] == 1:
            return None
        small = [resize_labels(labels, size) for size in self._sizes]
        masks = [x != IGNORE_INDEX for x in (labels, *small)]
        whole, *scales = global_scale(torch.stack([mask.sum() for mask in masks])).unbind()
        resized = zip(small, masks[1:], scales, strict=True)
        return Counted(whole, labels, dict(zip(self._sizes, resized, strict=True)))

    def learn(self, inputs: LossInputs) -> None:
        """Remember where the losses looked: on all ranks alike, whose maps have the same sizes."""
        if not self._sizes:
            self._sizes = [*dict.fromkeys(size for _, size in inputs.asked(resize_labels))]
