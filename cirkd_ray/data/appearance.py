"""Further training augmentation, off by default: other images' objects, colour jitter, blur, erasing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from cirkd_ray.data.base import UInt8
from cirkd_ray.types import PADDING_LABEL

Pair = tuple[UInt8, UInt8]
_SIGMA, _AREA, _SHAPE = (0.1, 2.0), (0.02, 0.33), (0.3, 3.3)
"""Ranges of torchvision: blur in pixels, share and shape (height / width) of what is erased."""


class Appearance(NamedTuple):
    """Changes a crop; random numbers come from the caller, the image work from torchvision's v2 functions.

    Attributes:
        color_jitter: how far brightness, contrast, saturation and hue may move, as torchvision's
            `ColorJitter(brightness, contrast, saturation, hue)`, in an order that is drawn.
        blur: probability of a Gaussian blur (sigma 0.1 to 2 pixels).
        erase: probability that a rectangle of 2 to 33 % of the image becomes its mean colour, with its labels
            left (Zhong et al. 2020).
        paste: probability that half of the classes of another image's crop are pasted into this one, image
            and labels (copy-paste after Ghiasi et al. 2021, with classes as in ClassMix, Olsson et al. 2021).
    """

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    blur: float = 0.0
    erase: float = 0.0
    paste: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return any((*self.color_jitter, self.blur, self.erase, self.paste))

    def __call__(self, pair: Pair, rng: np.random.Generator, other: Callable[[], Pair]) -> Pair:
        """The changed image and labels (h x w x 3 and h x w uint8); `other` makes a crop of another image."""
        if rng.random() < self.paste:
            pair = _pasted(pair, other(), rng)
        image, label = pair
        changed = torch.from_numpy(image).permute(2, 0, 1)
        changed = self._jittered(changed, rng)
        if rng.random() < self.blur:
            changed = _blurred(changed, float(rng.uniform(*_SIGMA)))
        if rng.random() < self.erase:
            changed = _erased(changed, rng)
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy()), label

    def _jittered(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from torchvision.transforms.v2 import functional

        brightness, contrast, saturation, hue = self.color_jitter
        moves: list[tuple[Any, float, float]] = [
            (functional.adjust_brightness, max(0.0, 1 - brightness), 1 + brightness),
            (functional.adjust_contrast, max(0.0, 1 - contrast), 1 + contrast),
            (functional.adjust_saturation, max(0.0, 1 - saturation), 1 + saturation),
            (functional.adjust_hue, -hue, hue),
        ]
        factors = rng.uniform(size=len(moves))
        for k in rng.permutation(len(moves)):
            adjust, low, high = moves[k]
            if low < high:
                image = adjust(image, low + float(factors[k]) * (high - low))
        return image


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    size = 2 * round(3 * sigma) + 1
    blurred: torch.Tensor = functional.gaussian_blur(image, [size, size], [sigma, sigma])
    return blurred


def _erased(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    height, width = image.shape[1:]
    area, shape = rng.uniform(*_AREA) * height * width, np.exp(rng.uniform(*np.log(_SHAPE)))
    high = min(height, max(1, round(float((area * shape) ** 0.5))))
    wide = min(width, max(1, round(float((area / shape) ** 0.5))))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    mean = image.double().mean((1, 2), keepdim=True).round().to(torch.uint8)
    erased: torch.Tensor = functional.erase(image, top, left, high, wide, mean)
    return erased


def _pasted(pair: Pair, source: Pair, rng: np.random.Generator) -> Pair:
    """Half of the classes of `source`, rounded up, over `pair`."""
    classes = np.unique(source[1])
    classes = classes[classes < PADDING_LABEL]
    if not len(classes):
        return pair
    chosen = rng.permutation(classes)[: -(-len(classes) // 2)]
    taken = np.isin(source[1], chosen)
    return np.where(taken[..., None], source[0], pair[0]), np.where(taken, source[1], pair[1])
