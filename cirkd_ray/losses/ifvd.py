"""Intra-class feature variation distillation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, LossInputs
from cirkd_ray.losses.maps import MapLoss, MapPair, pixel_scale, tokens
from cirkd_ray.losses.reduce import masked_mean


@LOSSES.register("ifvd")
class IFVD(MapLoss):
    """Distance of each pixel from its class's centre.

    Wang et al.: Intra-class Feature Variation Distillation for Semantic Segmentation (ECCV 2020), eqs. 1 to
    3: the cosine similarity of each pixel's feature and the mean feature of its class in the image; the
    mean square of the difference between teacher and student. The paper's adversarial term is the loss
    `adversarial`.

    Ignored pixels have no class and add nothing. `mask_ignored` also leaves them out of the number that the
    sum is divided by; the reference does not, so it is off by default.
    """

    terms = ("ifvd",)
    default_weights: ClassVar = {"ifvd": 20.0}
    adapted: ClassVar = "never"

    def __init__(self, *, mask_ignored: bool = False, **common: Any) -> None:
        super().__init__(mask_ignored=mask_ignored, **common)

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        labels = pair.labels.flatten(1)
        difference = self._similarity(pair.student, labels) - self._similarity(pair.teacher, labels)
        square = difference.square().masked_fill(labels == inputs.ignore_index, 0.0)
        mask = None if pair.mask is None else pair.mask.flatten(1)
        return {"ifvd": masked_mean(square, mask, pixel_scale(pair.mask, inputs))}

    def _similarity(self, x: Tensor, labels: Tensor) -> Tensor:
        """N x L cosine similarities to the class centres."""
        classes = torch.arange(self.num_classes, device=x.device).view(1, -1, 1)
        member = (labels.unsqueeze(1) == classes).to(x.dtype)
        feature = tokens(x)
        centre = member @ feature / (member.sum(2, keepdim=True) + 1e-6)
        return F.cosine_similarity(feature, member.transpose(1, 2) @ centre, dim=2)
