"""Fully convolutional head (Long et al. 2015, arXiv:1411.4038): also every network's auxiliary head."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, init_convolutions
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Rate, Width


@HEADS.register("fcn")
class FCNHead(Head):
    """A 3x3 convolution on the last encoder map.

    Args:
        encoder: channels and strides of the encoder's maps; only the last is used.
        num_classes: number of classes.
        head_channels: width of the feature; a quarter of the encoder's by default.
        dropout: dropout of the feature.
    """

    output_strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width | None = None,
        dropout: Rate = 0.1,
    ) -> None:
        super().__init__()
        inner = encoder.channels[-1]
        self.channels, self.stride = head_channels or max(1, inner // 4), encoder.strides[-1]
        self.fuse = ConvNormAct(inner, self.channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(self.channels, num_classes, 1)
        init_convolutions(self)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w from the coarsest map."""
        return self.dropout(self.fuse(stages[-1]))  # type: ignore[no-any-return]
