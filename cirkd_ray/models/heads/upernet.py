"""UPerNet (Xiao et al. 2018, arXiv:1807.10221)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, adaptive_average_pool, init_convolutions, resize
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Width


@HEADS.register("upernet")
class UPerNetHead(Head):
    """Pyramid pooling on the coarsest map, a feature pyramid over all, fused at the finest map's size.

    The defaults are the light head of CIRKDv2: 128 wide, with a last convolution of stride 2, so that an
    encoder of stride 4 gives a feature of stride 8.

    Args:
        encoder: channels and strides of the encoder's maps.
        num_classes: number of classes.
        head_channels: width of the pyramid and of the feature.
        pool_channels: width of each pooled branch.
        bins: rows and columns of each pool.
        fuse_stride: stride of the last convolution; by default 2 where the finest map has stride 4 or less,
            else 1.
    """

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width = 128,
        pool_channels: Width = 512,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        fuse_stride: Literal[1, 2] | None = None,
    ) -> None:
        super().__init__()
        *finer, coarsest = encoder.channels
        last_stride = fuse_stride or (2 if encoder.strides[0] <= 4 else 1)
        self.channels, self.stride, self.bins = head_channels, encoder.strides[0] * last_stride, bins
        self.pools = nn.ModuleList([ConvNormAct(coarsest, pool_channels) for _ in bins])
        self.pool_fuse = ConvNormAct(coarsest + len(bins) * pool_channels, head_channels, 3)
        self.lateral = nn.ModuleList([ConvNormAct(inner, head_channels) for inner in finer])
        self.smooth = nn.ModuleList([ConvNormAct(head_channels, head_channels, 3) for _ in finer])
        self.fuse = ConvNormAct(len(encoder.channels) * head_channels, head_channels, 3, stride=last_stride)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)
        init_convolutions(self)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w at the finest map's size over `fuse_stride`."""
        x = stages[-1]
        pooled = [x]
        for bins, reduce in zip(self.bins, self.pools, strict=True):
            pooled.append(reduce(resize(adaptive_average_pool(x, bins), x, align_corners=False)))
        top = self.pool_fuse(torch.cat(pooled, dim=1))
        pyramid = [top]
        for stage, lateral, smooth in zip(stages[-2::-1], self.lateral[::-1], self.smooth[::-1], strict=True):
            side = lateral(stage)
            top = side + resize(top, side, align_corners=False)
            pyramid.append(smooth(top))
        finest = pyramid[-1]
        maps = [resize(level, finest, align_corners=False) for level in reversed(pyramid)]
        return self.fuse(torch.cat(maps, dim=1))  # type: ignore[no-any-return]
