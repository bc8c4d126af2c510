"""SegFormer's all-MLP decoder (Xie et al. 2021, arXiv:2105.15203)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, init_transformer, resize
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Rate, Width


@HEADS.register("segformer")
class SegFormerHead(Head):
    """Every encoder map projected to one width, resized to the finest, joined coarse to fine and fused.

    Args:
        encoder: channels and strides of the encoder's maps.
        num_classes: number of classes.
        head_channels: width of the projections and of the feature (published: 256 for B0 and B1, else 768).
        dropout: channel dropout of the feature before the classifier. The CIRKD release trains with 0;
            mmsegmentation with 0.1.
    """

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width = 256,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.stride = head_channels, encoder.strides[0]
        self.projections = nn.ModuleList([nn.Conv2d(inner, head_channels, 1) for inner in encoder.channels])
        self.fuse = ConvNormAct(head_channels * len(encoder.channels), head_channels, bias=True)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)
        init_transformer(self)
        for projection in self.projections.children():
            nn.init.trunc_normal_(projection.get_parameter("weight"), std=0.02)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w at the size of the finest map."""
        maps = [
            resize(projection(stage), stages[0], align_corners=False)
            for projection, stage in zip(self.projections, stages, strict=True)
        ]
        return self.fuse(torch.cat(maps[::-1], dim=1))  # type: ignore[no-any-return]

    def classify(self, feature: Tensor) -> Tensor:
        """N x K x h x w class scores; dropout stands between the feature and the classifier."""
        return self.classifier(self.dropout(feature))  # type: ignore[no-any-return]
