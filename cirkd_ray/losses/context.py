"""The context module of CIRKDv2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContextModule(nn.Module):
    """A non-local block that the student's feature passes in training only.

    CIRKDv2 (Yang et al., 2025), after Wang et al.: Non-local Neural Networks (CVPR 2018), eq. 2: queries,
    keys and values are 1x1 convolutions to C/2 channels; `softmax(q . k / sqrt(C/2))` over all pixels mixes
    the values, which go back to C channels (1x1, BN, ReLU), are concatenated with the input, and 2C
    channels become C (1x1, BN, ReLU).

    Args:
        channels: C, of input and output (N x C x H x W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, inner, 1, bias=False)
        self.expand = _conv_bn_relu(inner, channels)
        self.fuse = _conv_bn_relu(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        # The fused kernel never holds the HW x HW matrix where the device has one.
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        context = self.expand(mixed.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))
        fused: Tensor = self.fuse(torch.cat([x, context], 1))
        return fused


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
