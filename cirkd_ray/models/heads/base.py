"""What a head is: encoder maps in, one feature map and its class scores out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from cirkd_ray.config import registry

Rate = Annotated[float, Field(ge=0, lt=1)]
"""Of a dropout."""
Width = Annotated[int, Field(gt=0)]
"""Number of channels."""


@dataclass(frozen=True)
class EncoderInfo:
    """What an encoder says of the maps it returns, from fine to coarse.

    Attributes:
        channels: channels of each map.
        strides: input pixels a map's pixel, each map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


class Head(nn.Module):
    """Base of every head.

    A subclass registers itself with `@HEADS.register(NAME)`, takes `encoder` and `num_classes` as required
    keyword arguments followed by its settings (keyword-only, annotated, with defaults), sets `channels` and
    `stride` of its feature map and `classifier` (a 1x1 convolution), and implements `features`. Then
    `NAME:TIMM_NAME` is a network.

    Attributes:
        output_strides: encoder output strides in the order in which they are tried when none is asked for.
        channels: channels of the feature map.
        stride: input pixels a pixel of the feature map.
        classifier: 1x1 convolution from the feature map to class scores.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    channels: int
    stride: int
    classifier: nn.Conv2d

    def features(self, stages: list[Tensor]) -> Tensor:
        """N x C x h x w feature map from the encoder's maps, fine to coarse."""
        raise NotImplementedError

    def classify(self, feature: Tensor) -> Tensor:
        """N x K x h x w class scores of the feature map."""
        return self.classifier(feature)  # type: ignore[no-any-return]


HEADS: registry.Registry[Head] = registry.HEADS
