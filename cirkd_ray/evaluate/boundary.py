"""Boundary IoU (Cheng et al., CVPR 2021): the overlap of the pixels near the edges of segments."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cirkd_ray.evaluate.metrics import ConfusionMatrix
from cirkd_ray.types import IGNORE_INDEX


class BoundaryMatrix(ConfusionMatrix):
    """Boundary IoU of each class over any number of images.

    A pixel belongs to its class's boundary when another class, an ignored pixel or the image's border lies
    within d pixels of it in either direction (a square window, as d erosions by 3 x 3 give it). d is a share
    of the image's diagonal, as in the paper. Class k's score is |G_d & P_d| / |G_d | P_d| over all images,
    G_d and P_d being the boundary pixels of class k in the labels and in the prediction. Ignored pixels do
    not count, and the prediction is cut out where the labels are ignored before its boundary is taken: both
    boundaries have the rims of ignored regions, so a perfect prediction scores 1.

    Args:
        num_classes: K.
        ratio: d over the diagonal; the paper's value is 0.02.
        device: where the counts are kept.
    """

    def __init__(
        self, num_classes: int, ratio: float = 0.02, device: torch.device | str | None = None
    ) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"the boundary's width must be a share of the diagonal in 0..1, got {ratio}")
        super().__init__(num_classes + 1, IGNORE_INDEX, device)  # the last counts pixels inside a segment
        self.ratio = ratio

    def update(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Count a batch: N x H x W integers each, labels with `IGNORE_INDEX` where a pixel does not count."""
        height, width = labels.shape[-2:]
        distance = max(1, round(self.ratio * math.hypot(height, width)))
        inside = torch.full_like(labels, self.num_classes - 1)
        ignored = labels == IGNORE_INDEX
        truth = torch.where(boundary(labels, distance) | ignored, labels, inside)
        # A network predicts classes on ignored pixels, too; without the cut the rim of an ignored region
        # would be boundary in the labels alone, and a perfect prediction would miss it.
        cut = torch.where(ignored, labels, prediction)
        predicted = torch.where(boundary(cut, distance), prediction, inside)
        return super().update(predicted, truth)

    def iou(self) -> Tensor:
        """K float64 boundary IoUs, on the CPU; NaN for a class without boundary in labels and predictions."""
        return super().iou()[:-1]


def boundary(labels: Tensor, distance: int) -> Tensor:
    """Where a label map changes, or ends, within `distance` pixels: N x H x W integers -> N x H x W bool."""
    compact = labels.to(torch.int16)
    outside = torch.full_like(compact[..., :1, :1], -2)
    shape = [compact.shape[0], compact.shape[1] + 2 * distance, compact.shape[2] + 2 * distance]
    padded = outside.expand(shape).clone()
    padded[:, distance:-distance, distance:-distance] = compact
    lowest, highest = padded, padded
    for dim in (1, 2):
        lowest = _running(torch.minimum, lowest, 2 * distance + 1, dim)
        highest = _running(torch.maximum, highest, 2 * distance + 1, dim)
    return lowest != highest


def _running(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, length: int, dim: int) -> Tensor:
    """Minimum or maximum of every window of `length` along `dim`, in log2(length) passes by doubling."""
    result, covered, windows = values, 1, values.shape[dim] - length + 1
    while covered < length:
        step = min(covered, length - covered)
        count = result.shape[dim] - step
        result = combine(result.narrow(dim, 0, count), result.narrow(dim, step, count))
        covered += step
    assert result.shape[dim] == windows
    return result
