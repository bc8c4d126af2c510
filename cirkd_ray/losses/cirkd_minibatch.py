"""CIRKD: relations among the pixels of the images of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from cirkd_ray.losses.base import LOSSES, AtLeastOne, LossInputs, Temperature
from cirkd_ray.losses.groups import Group, Groups
from cirkd_ray.losses.maps import MapLoss, MapPair, pool_map, pool_mask, row_weights, tokens, unit
from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.reduce import all_gather
from cirkd_ray.losses.relational import relational_kl
from cirkd_ray.losses.symmetric import relational_kl_symmetric


@LOSSES.register("cirkd_minibatch")
class CirkdMinibatch(MapLoss):
    """Mini-batch pixel-to-pixel distillation.

    Yang et al.: Cross-Image Relational Knowledge Distillation for Semantic Segmentation (CVPR 2022), eqs. 4
    to 6: with features L2-normalised over channels, for every ordered pair (i, j) of images the KL
    divergence between the rows of `softmax(F_i F_j^T / tau)` of teacher and student, mean over rows and
    pairs.

    Pairs are formed within groups of `group` consecutive images of the global batch (`groups.py`; default 2,
    the published 16 images on 8 GPUs), so that the loss does not depend on the number of workers; `rank` and
    `batch` compare the images of a rank (as the reference does) or all. `pool` averages p x p pixels first
    (the reference: 2 for SegFormer).

    Deviation from the reference: ignored pixels are neither rows nor keys (`mask_ignored: false` counts
    them).

    Args:
        temperature: divides similarities before the softmax; lower: only the nearest keys count.
        pool: pixels a side that are averaged first.
        group: images of the global batch that are compared with each other; `rank`: those of a rank,
            `batch`: all.
    """

    terms = ("minibatch_pixel",)
    adapted: ClassVar = "never"

    def __init__(
        self, *, temperature: Temperature = 0.1, pool: AtLeastOne = 1, group: Group = 2, **common: Any
    ) -> None:
        super().__init__(**common)
        self.temperature, self.pool, self.group = temperature, pool, group

    @classmethod
    def together(cls, active: frozenset[str], settings: Mapping[str, Any]) -> Group:
        group: Group = settings["group"]
        return group

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher, mask = self._pooled(pair, inputs)
        student, teacher = tokens(unit(student)), tokens(inputs.shared(unit, teacher))
        weights = row_weights(student, pair.mask, inputs, *self._how())
        mask = None if mask is None else mask.flatten(1)
        groups = Groups(len(student), self.group)
        relate = self._across if groups.gathers else self._within
        return {"minibatch_pixel": relate(student, teacher, weights, mask, groups, inputs.relations)}

    def _within(
        self,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor,
        mask: Tensor | None,
        groups: Groups,
        relations: Relations,
    ) -> Tensor:
        """Groups that this rank holds whole: those of equal size in one call, a smaller last one after."""
        total, keys = student.new_zeros(()), next(groups.parts()).keys
        size = keys.stop - keys.start
        whole = len(student) // size * size
        for rows, images in ((slice(0, whole), size), (slice(whole, None), len(student) - whole)):
            if images:
                total = total + relational_kl_symmetric(
                    student[rows].reshape(-1, images, *student.shape[1:]),
                    teacher[rows].reshape(-1, images, *teacher.shape[1:]),
                    weights[rows].flatten() / images,
                    temperature=self.temperature,
                    mask=None if mask is None else mask[rows].reshape(-1, images, *mask.shape[1:]),
                    relations=relations,
                )
        return total

    def _across(
        self,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor,
        mask: Tensor | None,
        groups: Groups,
        relations: Relations,
    ) -> Tensor:
        """Groups that span ranks."""
        keys_s, keys_t = groups.keys(student, teacher)
        key_mask = None if mask is None else all_gather(mask.to(torch.uint8)).bool()
        total = student.new_zeros(())
        for rows, keys in groups.parts():
            total = total + relational_kl(
                student[rows].flatten(0, 1),
                teacher[rows].flatten(0, 1),
                keys_s[keys],
                keys_t[keys],
                (weights[rows] / len(keys_s[keys])).flatten(),
                temperature=self.temperature,
                key_mask=None if key_mask is None else key_mask[keys],
                relations=relations,
            )
        return total

    def _pooled(self, pair: MapPair, inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both maps pooled, and the mask (N x h x w): a pooled pixel counts if any of its pixels does."""
        if self.pool == 1:
            return pair.student, pair.teacher, pair.mask
        return (
            pool_map(pair.student, self.pool),
            inputs.shared(pool_map, pair.teacher, self.pool),
            None if pair.mask is None else inputs.mask((*pair.mask.shape[-2:],), *self._how()),
        )

    def _how(self) -> tuple[object, ...]:
        """How a map's mask becomes that of the pooled one."""
        return (pool_mask, self.pool) if self.pool > 1 else ()
