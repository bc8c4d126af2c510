"""Lovász-softmax loss."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses.tasks.base import TASK_LOSSES, TaskTerm, scores_of


@TASK_LOSSES.register("lovasz")
class Lovasz(TaskTerm):
    """The Lovász extension of 1 - IoU, mean over the classes that an image shows and over images.

    Berman et al.: The Lovász-Softmax Loss (CVPR 2018), eq. 9 with "present" classes and IoUs of images.
    Images have equal weights, so the loss does not depend on the number of ranks. Classes are worked through
    one after another: each sorts its pixels' errors.
    """

    def forward(self, logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """See `TaskTerm`."""
        scores, flat = scores_of(logits), labels.flatten(1)
        ignored = flat < 0
        total, count = scores.new_zeros(len(scores)), scores.new_zeros(len(scores))
        for k in range(scores.shape[1]):
            truth = (flat == k).to(scores.dtype)
            present = truth.amax(1)
            errors = (truth - scores[:, k]).abs().masked_fill(ignored, -1.0)  # ignored ones come last
            ordered, places = errors.sort(1, descending=True)
            total = total + present * (ordered.clamp(min=0) * _gradient(truth.gather(1, places))).sum(1)
            count = count + present
        return (total / count.clamp(min=1)).mean()


@torch.no_grad()
def _gradient(truth: Tensor) -> Tensor:
    """Of the Lovász extension with respect to sorted errors (algorithm 1); N x P of 0 and 1."""
    whole = truth.sum(1, keepdim=True)
    missed, added = truth.cumsum(1), (1 - truth).cumsum(1)
    jaccard = 1 - (whole - missed) / (whole + added).clamp(min=1)
    return torch.diff(jaccard, dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
