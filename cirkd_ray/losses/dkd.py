"""Decoupled distillation of target and non-target classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, Channels, LossInputs, Temperature
from cirkd_ray.losses.maps import LogitLoss, MapPair, pixel_scale
from cirkd_ray.losses.reduce import masked_mean
from cirkd_ray.losses.relational import MASKED


@LOSSES.register("dkd")
class DKD(LogitLoss):
    """Decoupled knowledge distillation, per pixel.

    Zhao et al.: Decoupled Knowledge Distillation (CVPR 2022), eqs. 5 to 7: with the label's class as
    target, `tckd` is tau^2 times the KL divergence of the binary distributions (target, all others), `nckd`
    tau^2 times that of the distributions over the other classes alone. The published weights are 1 and 8
    (CIFAR-100).

    The paper classifies images; here each valid pixel is a sample, with its label resized by nearest
    neighbour. An ignored pixel has no target and never counts.

    Args:
        temperature: divides the logits before the softmax; higher: softer distributions.
        student_tap, teacher_tap: the maps of class scores that are compared, `logits` or `aux`.
    """

    terms = ("tckd", "nckd")
    default_weights: ClassVar = {"tckd": 1.0, "nckd": 8.0}

    def __init__(  # without `**common`: `mask_ignored` is no setting here
        self,
        *,
        student_channels: Channels,
        teacher_channels: Channels,
        num_classes: int,
        temperature: Temperature = 4.0,
        student_tap: str = "logits",
        teacher_tap: str = "logits",
    ) -> None:
        super().__init__(
            student_channels=student_channels,
            teacher_channels=teacher_channels,
            num_classes=num_classes,
            student_tap=student_tap,
            teacher_tap=teacher_tap,
        )
        self.temperature = temperature

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        classes = torch.arange(pair.student.shape[1], device=pair.labels.device).view(1, -1, 1, 1)
        target = pair.labels.unsqueeze(1) == classes
        student, teacher = (self._decoupled(x, target) for x in (pair.student, pair.teacher))
        scale = pixel_scale(pair.mask, inputs)
        return {
            name: masked_mean(F.kl_div(s, t, reduction="none", log_target=True).sum(1), pair.mask, scale)
            * self.temperature**2
            for name, s, t in zip(self.terms, student, teacher, strict=True)
            if name in self.active
        }

    def _decoupled(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of (target, others), N x 2 x H x W, and among the others, N x K x H x W."""
        scaled = logits / self.temperature
        others = scaled.masked_fill(target, MASKED)
        total, rest = scaled.logsumexp(1), others.logsumexp(1)
        chosen = scaled.masked_fill(~target, 0.0).sum(1)
        return torch.stack([chosen - total, rest - total], 1), others.log_softmax(1)
