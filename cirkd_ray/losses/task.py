"""The supervised terms: losses with the labels, of the head and of the auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from cirkd_ray.losses.base import check_labels
from cirkd_ray.losses.reduce import mask_scale
from cirkd_ray.losses.tasks.base import TaskTerm
from cirkd_ray.losses.tasks.cross_entropy import CrossEntropy
from cirkd_ray.types import IGNORE_INDEX, SegmentationOutput

AUX = "_aux"
"""Ends the names of the auxiliary head's terms."""


class TaskLoss(nn.Module):
    """Terms `NAME` and, where the network has an auxiliary head, `NAME_aux`, of each supervised loss.

    Args:
        losses: the losses by free names; by default the cross-entropy, called `task`.
        align_corners: how scores are upsampled to the labels' size; true for the published ResNet and
            MobileNet heads, false for SegFormer.
    """

    def __init__(self, losses: Mapping[str, TaskTerm] | None = None, *, align_corners: bool = True) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses or {"task": CrossEntropy(num_classes=0, shares=None)})
        self.align_corners = align_corners
        self._labels_checked = False

    def forward(
        self, output: SegmentationOutput, labels: Tensor, scale: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Unweighted scalars.

        Args:
            output: the student's.
            labels: N x H x W int64.
            scale: `world / valid pixels`, where the caller has counted them.

        Raises:
            ConfigError: a label that is no class (looked for once on a device, always on the CPU).
        """
        if labels.device.type == "cpu" or not self._labels_checked:
            check_labels("task loss", labels, output.logits.shape[1], IGNORE_INDEX)
            self._labels_checked = True
        scale = mask_scale(labels != IGNORE_INDEX) if scale is None else scale
        terms: dict[str, Tensor] = {}
        for end, logits in (("", output.logits), (AUX, output.aux)):
            if logits is not None:
                large = self._resized(logits, labels)
                terms |= {name + end: loss(large, labels, scale) for name, loss in self.losses.items()}
        return terms

    def _resized(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scores, upsampled bilinearly to the size of the labels."""
        size = labels.shape[-2:]
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
