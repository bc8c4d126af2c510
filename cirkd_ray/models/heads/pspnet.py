"""PSPNet: pyramid pooling (Zhao et al. 2017, arXiv:1612.01105)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, adaptive_average_pool, init_convolutions, resize
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Rate, Width


@HEADS.register("pspnet")
class PSPNetHead(Head):
    """The last encoder map beside its average pools of 1, 2, 3 and 6 bins, then a 3x3 convolution.

    Each pool is reduced to a quarter of the encoder's channels. As in the CIRKD release the feature is a
    quarter of them too, and at least 128 wide.

    Args:
        encoder: channels and strides of the encoder's maps.
        num_classes: number of classes.
        head_channels: width of the feature; by default the rule above.
        bins: rows and columns of each pool.
        dropout: dropout of the feature.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width | None = None,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: Rate = 0.1,
    ) -> None:
        super().__init__()
        inner = encoder.channels[-1]
        width = head_channels or max(128, inner // 4)
        reduced = inner // 4
        self.channels, self.stride, self.bins = width, encoder.strides[-1], bins
        self.pools = nn.ModuleList([ConvNormAct(inner, reduced) for _ in bins])
        self.fuse = ConvNormAct(inner + len(bins) * reduced, width, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        init_convolutions(self)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w from the coarsest map."""
        x = stages[-1]
        maps = [x]
        for bins, reduce in zip(self.bins, self.pools, strict=True):
            maps.append(resize(reduce(adaptive_average_pool(x, bins)), x, align_corners=True))
        return self.dropout(self.fuse(torch.cat(maps, dim=1)))  # type: ignore[no-any-return]
