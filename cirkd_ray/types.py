"""The few structures that models, losses, data and engine exchange."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

IGNORE_LABEL = 255
"""Value of ignored pixels in stored uint8 label maps (see `cirkd_ray.data`)."""
PADDING_LABEL = 254
"""Value of pixels that cropping had to invent: ignored like 255, and zero in every network's input."""
IGNORE_INDEX = -1
"""Value of ignored pixels in the int64 labels that losses and metrics see."""


class SegmentationOutput(NamedTuple):
    """What every segmentation network returns.

    Attributes:
        logits: N x K x h x w class scores at feature resolution (1/8 of the input; 1/4 for SegFormer). K is 0
            where a teacher has features alone.
        aux: N x K x h' x w' scores of the auxiliary head, or None where the network has none.
        feature: N x C x h x w map of the head just before the classifier.
        stages: encoder maps by stage name (`stage1` ...), only those that were asked for.
    """

    logits: Tensor
    aux: Tensor | None
    feature: Tensor
    stages: dict[str, Tensor] | None = None

    def tap(self, name: str) -> Tensor:
        """The map of that name: `logits`, `aux`, `feature` or an encoder stage.

        Raises:
            KeyError: the network did not return such a map.
        """
        logits = self.logits if self.logits.shape[1] else None
        maps = {"logits": logits, "feature": self.feature, "aux": self.aux, **(self.stages or {})}
        value = maps.get(name)
        if value is None:
            have = [key for key, found in maps.items() if found is not None]
            raise KeyError(f"no map named {name!r} in this network's output; it has {', '.join(have)}")
        return value


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pixels: a property of its weights, stored beside them.

    An RGB value v in 0..255 of channel c becomes `(v * scale - mean[c]) / std[c]`, with mean and std given
    in the order of `channels`. Pixels that padding invented become exactly 0.
    """

    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """`Preprocess` for once: it makes its constants anew in each call."""
        return Preprocess(self).to(images.device).forward(images, padding)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in `model.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            ValueError: an entry is missing or is not what it must be.
        """
        try:
            scale = float(values["scale"])
            mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
            channels = values["channels"]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"preprocessing: {reason}") from None
        if channels not in ("rgb", "bgr"):
            raise ValueError(f"preprocessing: channels are 'rgb' or 'bgr', not {channels!r}")
        if not (len(mean) == len(std) == 3 and all(map(math.isfinite, (scale, *mean, *std)))):
            raise ValueError("preprocessing: it takes three finite values of mean and of std, and a scale")
        if min(scale, *std) <= 0:
            raise ValueError("preprocessing: scale and std are above zero")
        return cls(channels=channels, scale=scale, mean=mean, std=std)


class Preprocess(nn.Module):
    """A `Preprocessing` at work, with its constants on the device; state dicts hold nothing of it.

    Args:
        description: what it does.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, description: Preprocessing) -> None:
        super().__init__()
        self.bgr, self.scale = description.channels == "bgr", description.scale
        for name in ("mean", "std"):
            value = torch.tensor(getattr(description, name), dtype=torch.float32)
            self.register_buffer(name, value.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """Float input of the network.

        Args:
            images: N x 3 x H x W, RGB, uint8 (or float in 0..255).
            padding: N x H x W bool, true where the pixel was invented.

        Returns:
            N x 3 x H x W float32.
        """
        x = images.to(torch.float32)
        x = x.flip(1) if self.bgr else x
        x = (x * self.scale - self.mean) / self.std
        return x if padding is None else x.masked_fill(padding.unsqueeze(1), 0.0)


IMAGENET = Preprocessing()
"""timm's and torchvision's ImageNet weights: RGB, 0..1, mean and std."""
CAFFE = Preprocessing("bgr", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0))
"""The CIRKD release's weights: BGR, 0..255, minus the mean."""


@dataclass(frozen=True)
class ClassSet:
    """Names and colours of a data set's classes; class k is row k."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")

    def __len__(self) -> int:
        return len(self.names)
