"""Dense prediction transformer (Ranftl et al. 2021, arXiv:2103.13413)."""

from __future__ import annotations

from torch import Tensor, nn

from cirkd_ray.models.blocks import ConvNormAct, init_convolutions, resize
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head, Rate, Width


class _Residual(nn.Module):
    """Two pre-activated 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            layers += [nn.ReLU(), convolution, nn.BatchNorm2d(channels)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.body(x)  # type: ignore[no-any-return]


class _Fusion(nn.Module):
    """Add the coarser result to a side map, refine."""

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        # The coarsest level has nothing to be added to: a residual there would be a parameter without use.
        self.side = nn.Identity() if first else _Residual(channels)
        self.refine = _Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, side: Tensor, coarser: Tensor | None) -> Tensor:
        """N x C x h x w at the side map's size."""
        x = self.side(side)
        if coarser is not None:
            x = x + resize(coarser, x, align_corners=True)
        return self.project(self.refine(x))  # type: ignore[no-any-return]


@HEADS.register("dpt")
class DPTHead(Head):
    """Encoder maps brought to a pyramid and fused coarse to fine by residual units: made for plain ViTs.

    Where all encoder maps have one stride (a plain ViT), they are first resampled to 4, 2, 1 and 1/2 times
    their size by transposed and strided convolutions (the paper's reassembly); the maps of a hierarchical
    encoder keep theirs. The feature has the size of the finest level: a quarter of the patch size of a ViT.

    Args:
        encoder: channels and strides of the encoder's maps.
        num_classes: number of classes.
        head_channels: width of the fusion and of the feature.
        dropout: dropout of the feature before the classifier.
    """

    def __init__(
        self,
        *,
        encoder: EncoderInfo,
        num_classes: int,
        head_channels: Width = 256,
        dropout: Rate = 0.1,
    ) -> None:
        super().__init__()
        count = len(encoder.channels)
        plain = count > 1 and len(set(encoder.strides)) == 1
        factors = _factors(encoder.strides[0], count) if plain else [1.0] * count
        self.channels = head_channels
        self.stride = int(encoder.strides[0] / factors[0])
        self.reassemble = nn.ModuleList(
            [_resample(inner, head_channels, f) for inner, f in zip(encoder.channels, factors, strict=True)]
        )
        self.fusions = nn.ModuleList(
            [_Fusion(head_channels, first=level == count - 1) for level in range(count)]
        )
        self.fuse = ConvNormAct(head_channels, head_channels, 3)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)
        init_convolutions(self)

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x head_channels x h x w at the size of the finest level."""
        sides = [layer(stage) for layer, stage in zip(self.reassemble, stages, strict=True)]
        x: Tensor | None = None
        for side, fusion in zip(reversed(sides), self.fusions[::-1], strict=True):
            x = fusion(side, x)
        assert x is not None
        return self.fuse(x)  # type: ignore[no-any-return]

    def classify(self, feature: Tensor) -> Tensor:
        """N x K x h x w class scores; dropout stands between the feature and the classifier."""
        return self.classifier(self.dropout(feature))  # type: ignore[no-any-return]


def _factors(stride: int, count: int) -> list[float]:
    """Enlargement of each map of a plain ViT; the finest level's stride stays whole (7 for patches of 14)."""
    finest = next(factor for factor in (4, 2, 1) if stride % factor == 0)
    return [max(2.0**-1, min(finest, 2.0 ** (2 - level))) for level in range(count)]


def _resample(in_channels: int, out_channels: int, factor: float) -> nn.Module:
    """A projection that changes the size by `factor` (4, 2, 1 or 1/2), followed by a 3x3 convolution."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 1)]
    if factor > 1:
        scale = int(factor)
        layers.append(nn.ConvTranspose2d(out_channels, out_channels, scale, stride=scale))
    elif factor < 1:
        layers.append(nn.Conv2d(out_channels, out_channels, 3, stride=int(1 / factor), padding=1))
    layers.append(nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False))
    return nn.Sequential(*layers)
