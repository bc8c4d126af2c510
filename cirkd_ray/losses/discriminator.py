"""The discriminator of the adversarial loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

SMALLEST = 64
"""The smallest height and width that four strides of 2 and a 4 x 4 window leave a score of."""


class SelfAttention(nn.Module):
    """Self-attention over pixels with a learned, at first zero, share (SAGAN, eqs. 1 to 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        attention = (query.transpose(1, 2) @ key).softmax(2)
        mixed: Tensor = (value @ attention.transpose(1, 2)).view_as(x)
        return x + self.gamma * mixed


class Discriminator(nn.Module):
    """Zhang et al.: Self-Attention Generative Adversarial Networks (ICML 2019), as used by SKD.

    BatchNorm of the input; four spectrally normalised 4x4 convolutions of stride 2 with `width` x 1, 2, 4,
    8 channels and LeakyReLU(0.1); self-attention after the third and the fourth; a 4x4 convolution to one
    channel.

    Args:
        channels: of the input (N x channels x H x W); maps smaller than 64 x 64 are enlarged bilinearly.
        width: channels of the first convolution.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(channels)]
        for i in range(4):
            layers += [spectral_norm(nn.Conv2d(channels, width * 2**i, 4, 2, 1)), nn.LeakyReLU(0.1)]
            channels = width * 2**i
            if i >= 2:
                layers.append(SelfAttention(channels))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Scores, N x 1 x h x w."""
        size = (max(x.shape[2], SMALLEST), max(x.shape[3], SMALLEST))
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        scores: Tensor = self.layers(x)
        return scores
