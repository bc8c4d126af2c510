"""DeepLabV3: atrous spatial pyramid pooling (Chen et al. 2017, arXiv:1706.05587)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, init_convolutions
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Rate, Width


@HEADS.register("deeplabv3")
class DeepLabV3Head(Head):
    """ASPP on the last encoder map, then a 3x3 convolution; the feature keeps that map's size.

    As in the CIRKD release the rates are 12, 24, 36 at any output stride, the width is 128 for encoders that
    end in up to 512 channels and 256 for wider ones, and the feature is taken after its dropout.

    Args:
        encoder: channels and strides of the encoder's maps.
        num_classes: number of classes.
        head_channels: width of all convolutions; by default the rule above.
        rates: dilations of the three 3x3 branches.
        aspp_dropout: dropout after the projection of the joined branches.
        dropout: dropout of the feature.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width | None = None,
        rates: tuple[int, int, int] = (12, 24, 36),
        aspp_dropout: Rate = 0.5,
        dropout: Rate = 0.1,
    ) -> None:
        super().__init__()
        inner = encoder.channels[-1]
        width = head_channels or (128 if inner <= 512 else 256)
        self.channels, self.stride = width, encoder.strides[-1]
        atrous = [ConvNormAct(inner, width, 3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([ConvNormAct(inner, width), *atrous])
        self.pooled = ConvNormAct(inner, width)
        self.project = ConvNormAct(width * (len(rates) + 2), width)
        self.project_dropout = nn.Dropout(aspp_dropout)
        self.fuse = ConvNormAct(width, width, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        init_convolutions(self)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w from the coarsest map."""
        x = stages[-1]
        maps = [branch(x) for branch in self.branches]
        # A 1 x 1 map resized to h x w is that value everywhere.
        maps.append(self.pooled(x.mean((2, 3), keepdim=True)).expand_as(maps[0]))
        x = self.project_dropout(self.project(torch.cat(maps, dim=1)))
        return self.dropout(self.fuse(x))  # type: ignore[no-any-return]
