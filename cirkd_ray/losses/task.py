"""The supervised term: cross-entropy against the labels, for the head and the auxiliary head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirkd_ray.losses.base import check_labels
from cirkd_ray.losses.reduce import mask_scale
from cirkd_ray.types import IGNORE_INDEX, SegmentationOutput

TASK_WEIGHTS = {"task": 1.0, "task_aux": 0.4}
"""The published weight of each term."""


def segmentation_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    align_corners: bool = True,
    scale: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the valid pixels of the global batch; 0 where every pixel is ignored.

    Args:
        logits: N x K x h x w, upsampled bilinearly to the size of the labels.
        labels: N x H x W int64.
        ignore_index: the label of pixels that do not count.
        align_corners: how logits are upsampled; true for the published ResNet and MobileNet heads, false
            for SegFormer.
        scale: `world / valid pixels`, where the caller has counted them.
    """
    size = labels.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    # CUDA's summed form adds in no fixed order and refuses where that is not allowed.
    fixed_order = logits.is_cuda and torch.are_deterministic_algorithms_enabled()
    reduction = "none" if fixed_order else "sum"
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction=reduction).sum()
    scale = mask_scale(labels != ignore_index) if scale is None else scale
    return total * scale.to(total.dtype)


class TaskLoss(nn.Module):
    """Terms `task` and, where the network has an auxiliary head, `task_aux` (weights: `TASK_WEIGHTS`)."""

    def __init__(self, *, align_corners: bool = True, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.align_corners, self.ignore_index = align_corners, ignore_index
        self._labels_checked = False

    def forward(
        self, output: SegmentationOutput, labels: Tensor, scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Unweighted scalars; `labels` is N x H x W int64, `scale` as of `segmentation_cross_entropy`.

        Raises:
            ConfigError: a label that is no class (looked for once on a device, always on the CPU).
        """
        if labels.device.type == "cpu" or not self._labels_checked:
            check_labels("task loss", labels, output.logits.shape[1], self.ignore_index)
            self._labels_checked = True
        scale = mask_scale(labels != self.ignore_index) if scale is None else scale
        how = self.ignore_index, self.align_corners, scale
        terms = {"task": segmentation_cross_entropy(output.logits, labels, *how)}
        if output.aux is not None:
            terms["task_aux"] = segmentation_cross_entropy(output.aux, labels, *how)
        return terms
