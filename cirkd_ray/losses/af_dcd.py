"""Augmentation-free dense contrastive distillation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.base import LOSSES, AtLeastOne, LossInputs, Temperature
from cirkd_ray.losses.maps import MapLoss, MapPair, pixel_scale
from cirkd_ray.losses.mgd import MaskedGenerator, imitation_error
from cirkd_ray.losses.reduce import masked_mean
from cirkd_ray.losses.relational import MASKED


@LOSSES.register("af_dcd")
class AfDCD(MapLoss):
    """Masked feature mimicking with a dense contrast inside local patches and channel groups.

    Fan et al.: Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation
    (NeurIPS 2023). `af_dcd_feature` is the squared error of a generated map as in `mgd`. For
    `af_dcd_contrast` the generated map and the teacher's are max-pooled, cut into patches of p x p pixels,
    and each pixel's channels into M groups. With s(a, b) = -|a - b|_1 / tau, each (pixel, group) vector a of
    the student has its teacher counterpart b as positive and the teacher's vectors c of the *other* groups in
    the patch as negatives: `-log(exp s(a, b) / (exp s(a, b) + sum_c exp s(a, c)))`, summed over the groups,
    mean over pixels. Cityscapes weights: 2e-6 and 5e-3.

    Chosen here, where paper and code leave room: the negatives are those of the authors' code (the other
    groups at every position of the patch; the same group at other positions is neither positive nor
    negative). Rows and columns that do not fill a patch are cut off, as the authors do for CamVid (with
    `pool: 1`). The published recipes use a centre mask or a random one by data set; here it is random. A
    pooled pixel counts if any of its pixels does; ignored ones are no anchors, but remain negatives
    (`mask_ignored: false` counts all).

    Args:
        temperature: tau.
        mask_ratio: share of the student's pixels that are set to 0 before the generator.
        pool: pixels a side of the max-pooling.
        patch: p, pooled pixels a side of a patch.
        groups: M, which must divide the teacher's channels.
    """

    terms = ("af_dcd_feature", "af_dcd_contrast")
    default_weights: ClassVar = {"af_dcd_feature": 2e-6, "af_dcd_contrast": 5e-3}

    def __init__(
        self,
        *,
        temperature: Temperature = 0.07,
        mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75,
        pool: AtLeastOne = 4,
        patch: AtLeastOne = 4,
        groups: Annotated[int, Field(ge=2)] = 16,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if self.teacher_width % groups:
            raise ConfigError(
                f"loss 'af_dcd': groups={groups} does not divide the teacher's {self.teacher_width} channels"
            )
        self.temperature, self.pool, self.patch, self.groups = temperature, pool, patch, groups
        self.generator = MaskedGenerator(self.teacher_width, mask_ratio)

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        generated = self.generator(pair.student, inputs)
        terms = {}
        if "af_dcd_feature" in self.active:
            terms["af_dcd_feature"] = imitation_error(generated, pair)
        if "af_dcd_contrast" in self.active:
            terms["af_dcd_contrast"] = self._contrast(generated, pair, inputs)
        return terms

    def _contrast(self, generated: Tensor, pair: MapPair, inputs: LossInputs) -> Tensor:
        student, teacher = self._patches(generated), self._patches(pair.teacher)
        similarity = torch.cdist(student, teacher, p=1) / -self.temperature
        group = torch.arange(similarity.shape[1], device=similarity.device) % self.groups
        same = group.unsqueeze(0) == group.unsqueeze(1)
        positive = similarity.diagonal(dim1=1, dim2=2)
        negative = similarity.masked_fill(same, MASKED).logsumexp(2)
        entropy = torch.logaddexp(positive, negative) - positive
        per_pixel = entropy.view(entropy.shape[0], -1, self.groups).sum(2)
        if pair.mask is None:
            return masked_mean(per_pixel, None)
        mask = inputs.mask((*pair.mask.shape[-2:],), self._anchors)
        return masked_mean(per_pixel, mask, pixel_scale(pair.mask, inputs, self._anchors))

    def _anchors(self, mask: Tensor) -> Tensor:
        """N*patches x (p*p): which pooled pixels of the patches count."""
        return self._patches(mask.to(torch.float32).unsqueeze(1), groups=1).squeeze(2) > 0

    def _patches(self, x: Tensor, groups: int | None = None) -> Tensor:
        """N*patches x (p*p*groups) x C/groups: the channel groups of each patch's pixels, group fastest."""
        groups = groups or self.groups
        x = F.max_pool2d(x, self.pool)
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        if rows * columns == 0:
            raise ConfigError(
                f"loss 'af_dcd': maps pooled to {x.shape[2]} x {x.shape[3]} hold no patch of {self.patch} x "
                f"{self.patch}; lower pool or patch, or enlarge the crop"
            )
        x = x[:, :, : rows * self.patch, : columns * self.patch]
        x = x.reshape(x.shape[0], groups, -1, rows, self.patch, columns, self.patch)
        # N, group, C/group, row, y, column, x -> N, row, column, y, x, group, C/group
        return x.permute(0, 3, 5, 4, 6, 1, 2).flatten(3, 5).flatten(0, 2)
