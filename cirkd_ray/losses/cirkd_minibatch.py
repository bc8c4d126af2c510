"""CIRKD: relations among the pixels of the images of a batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, AtLeastOne, LossInputs, Temperature
from cirkd_ray.losses.maps import MapLoss, MapPair, pool_mask, tokens, unit
from cirkd_ray.losses.reduce import all_gather, all_gather_grad, mean_weights, rank_and_world
from cirkd_ray.losses.relational import relational_kl
from cirkd_ray.losses.symmetric import relational_kl_symmetric


@LOSSES.register("cirkd_minibatch")
class CirkdMinibatch(MapLoss):
    """Mini-batch pixel-to-pixel distillation.

    Yang et al.: Cross-Image Relational Knowledge Distillation for Semantic Segmentation (CVPR 2022), eqs. 4
    to 6: with features L2-normalised over channels, for every ordered pair (i, j) of images the KL
    divergence between the rows of `softmax(F_i F_j^T / tau)` of teacher and student, mean over rows and
    pairs.

    `gather` compares the local images with those of all ranks, forward and backward, so that the loss is
    that of one process with the joined batch (the reference compares within a rank). `pool` averages p x p
    pixels first (the reference: 2 for SegFormer).

    Deviation from the reference: ignored pixels are neither rows nor keys (`mask_ignored: false` counts
    them).
    """

    terms = ("minibatch_pixel",)
    adapted: ClassVar = "never"

    def __init__(
        self, *, temperature: Temperature = 0.1, pool: AtLeastOne = 1, gather: bool = False, **common: Any
    ) -> None:
        super().__init__(**common)
        self.temperature, self.pool, self.gather = temperature, pool, gather

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher, mask = self._pooled(pair)
        student, teacher = tokens(unit(student)), tokens(unit(teacher))
        weights = mean_weights(student.flatten(0, 1), None if mask is None else mask.flatten())
        if not self.gather or rank_and_world()[1] == 1:
            loss = relational_kl_symmetric(
                student, teacher, weights / student.shape[0], temperature=self.temperature, mask=mask
            )
            return {"minibatch_pixel": loss}
        keys_s, keys_t = all_gather_grad(student), all_gather(teacher)
        key_mask = None if mask is None else all_gather(mask.to(torch.uint8)).to(torch.bool)
        loss = relational_kl(
            student.flatten(0, 1),
            teacher.flatten(0, 1),
            keys_s,
            keys_t,
            weights / keys_s.shape[0],
            temperature=self.temperature,
            key_mask=key_mask,
        )
        return {"minibatch_pixel": loss}

    def _pooled(self, pair: MapPair) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both maps pooled, and the mask (N x hw): a pooled pixel counts if any of its pixels does."""
        student, teacher, mask = pair.student, pair.teacher, pair.mask
        if self.pool > 1:
            student, teacher = (F.avg_pool2d(x, self.pool, ceil_mode=True) for x in (student, teacher))
            mask = None if mask is None else pool_mask(mask, self.pool)
        return student, teacher, None if mask is None else mask.flatten(1)
