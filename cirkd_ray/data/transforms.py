"""Training augmentation: random scale, padding to the crop, random crop, random flip."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from cirkd_ray.data.base import Readable, UInt8
from cirkd_ray.errors import ConfigError
from cirkd_ray.types import PADDING_LABEL

_MAX_PERIOD = 80
_MAX_TRIES = 10


class Crop(NamedTuple):
    """Where a crop lies in the scaled image (which it may exceed at the bottom and at the right)."""

    scale: Fraction
    top: int
    left: int


class TrainTransform:
    """The augmentation of the published recipes, working only on the pixels that the crop needs.

    It draws, in this order: the scale `low + k * step`, the crop's position in the image (padded at the
    bottom and at the right), the flip. Images are scaled bilinearly and labels by nearest neighbour, as
    `cv2.resize` scales the whole. Tests hold this: labels are equal; so are images, but for float rounding
    inside OpenCV (of the scales 0.5, 0.6 ... 2.0 only at 1.9; there, under 1 % of the values differ by 1).

    Pixels that padding invents are 0 in the image and `PADDING_LABEL` in the label.

    Args:
        crop: (height, width) of the result.
        scale_range: smallest and largest scale, both inclusive.
        scale_step: distance of two scales.
        flip: probability of a horizontal flip.
        max_class_share: draw the position again, at most ten times, while one class covers more than this
            share of the crop's labelled pixels (1 = never; 0.75 favours rare classes).

    Raises:
        ConfigError: a range upside down.
    """

    def __init__(
        self,
        *,
        crop: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]],
        scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0),
        scale_step: Annotated[float, Field(gt=0)] = 0.1,
        flip: Annotated[float, Field(ge=0, le=1)] = 0.5,
        max_class_share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        low, high = (Fraction(str(value)) for value in scale_range)
        step = Fraction(str(scale_step))
        if high < low:
            raise ConfigError(f"data.scale_range: {scale_range[0]} is larger than {scale_range[1]}")
        self.crop = crop
        self.scales = [low + k * step for k in range(int((high - low) / step) + 1)]
        self.flip = flip
        self.max_class_share = max_class_share

    def __call__(self, sample: Readable, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
        """The crop's image (h x w x 3) and labels (h x w), both uint8 and contiguous."""
        scale = self.scales[int(rng.integers(len(self.scales)))]
        label, place = self._place(sample, scale, rng)
        image = scaled_window(sample, place, self.crop)
        if rng.random() < self.flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        return image, label

    def _place(self, sample: Readable, scale: Fraction, rng: np.random.Generator) -> tuple[UInt8, Crop]:
        """Draw a position; return the labels there and the position."""
        height, width = scaled_size(sample.size, scale)
        for _ in range(_MAX_TRIES if self.max_class_share < 1 else 1):
            top = int(rng.integers(max(height - self.crop[0], 0) + 1))
            left = int(rng.integers(max(width - self.crop[1], 0) + 1))
            place = Crop(scale, top, left)
            label = scaled_labels(sample, place, self.crop)
            if self.max_class_share == 1 or largest_share(label) <= self.max_class_share:
                break
        return label, place


def largest_share(label: UInt8) -> float:
    """The share of the commonest class among labelled pixels; 1 where nothing is labelled."""
    counts = np.bincount(label.ravel(), minlength=256)[:PADDING_LABEL]
    total = int(counts.sum())
    return float(counts.max()) / total if total else 1.0


def scaled_size(size: tuple[int, int], scale: Fraction) -> tuple[int, int]:
    """(height, width) that `cv2.resize` gives an image of `size`: rounded, halves to even."""
    return max(1, round(size[0] * float(scale))), max(1, round(size[1] * float(scale)))


def scaled_labels(sample: Readable, place: Crop, crop: tuple[int, int]) -> UInt8:
    """The crop of the labels scaled by nearest neighbour: source index = floor(index / scale)."""
    inside = _inside(sample.size, place, crop)
    rows = _nearest(place.top, inside[0], place.scale, sample.size[0])
    columns = _nearest(place.left, inside[1], place.scale, sample.size[1])
    window = sample.label_window(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    if place.scale != 1:
        window = window[rows - rows[0]].take(columns - columns[0], axis=1)
    return _padded(window, crop, PADDING_LABEL)


def _nearest(start: int, count: int, scale: Fraction, limit: int) -> np.ndarray:
    # The same double-precision product as OpenCV's: no pixel differs where index / scale is a whole number.
    indices = np.floor(np.arange(start, start + count) * (1.0 / float(scale))).astype(np.int64)
    clipped: np.ndarray = np.minimum(indices, limit - 1)
    return clipped


def scaled_window(sample: Readable, place: Crop, crop: tuple[int, int]) -> UInt8:
    """The crop of the image scaled bilinearly.

    With the scale p / q in lowest terms, p scaled pixels are q source pixels, so a window that starts at
    multiples of these has the same sampling points as the whole image; a margin, or the image's edge, is kept
    around it.
    """
    scale, inside = place.scale, _inside(sample.size, place, crop)
    if scale == 1:
        bounds = (place.top, place.left, place.top + inside[0], place.left + inside[1])
        return _padded(sample.image_window(*bounds), crop, 0)
    top, bottom = _source_span(place.top, inside[0], scale, sample.size[0])
    left, right = _source_span(place.left, inside[1], scale, sample.size[1])
    window = sample.image_window(top, left, bottom, right)
    y, x = place.top - int(top * scale), place.left - int(left * scale)
    # OpenCV rounds sizes: at the image's edge a window can come out one pixel short of the whole.
    short = (y + inside[0] > round(window.shape[0] * scale), x + inside[1] > round(window.shape[1] * scale))
    if any(short):
        window = cv2.copyMakeBorder(window, 0, int(short[0]), 0, int(short[1]), cv2.BORDER_REPLICATE)
    factor = float(scale)
    resized = cv2.resize(window, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return _padded(resized[y : y + inside[0], x : x + inside[1]], crop, 0)


def _source_span(start: int, count: int, scale: Fraction, limit: int) -> tuple[int, int]:
    """First and one past the last source pixel for `count` scaled pixels from `start`."""
    # Two periods: an even start keeps sizes that end in a half rounding to the same side.
    p, q = 2 * scale.numerator, 2 * scale.denominator
    if max(p, q) > _MAX_PERIOD:
        return 0, limit  # an odd scale such as 0.777: its period is too long to be worth a window
    margin = 1 + math.ceil(scale)
    first = max(0, (start - margin) // p) * q
    last = -(-(start + count + margin) // p) * q
    return first, min(limit, last)


def _inside(size: tuple[int, int], place: Crop, crop: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of the crop lie in the scaled image."""
    height, width = scaled_size(size, place.scale)
    return min(crop[0], height - place.top), min(crop[1], width - place.left)


def _padded(part: UInt8, crop: tuple[int, int], value: int) -> UInt8:
    """`part` in the top left corner of a contiguous array of the crop's size."""
    below, right = crop[0] - part.shape[0], crop[1] - part.shape[1]
    if below or right:
        fill = (value, value, value)
        part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill)
    whole: UInt8 = np.ascontiguousarray(part)
    return whole
