"""Augmentation equals the straightforward one: scale the whole, pad, crop, flip."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirkd_ray.data.base import Sample, UInt8
from cirkd_ray.data.transforms import Crop, TrainTransform, largest_share, scaled_labels, scaled_window
from cirkd_ray.errors import ConfigError
from cirkd_ray.types import PADDING_LABEL
from tests.errors import refuses

SCALES = [Fraction(5 + k, 10) for k in range(16)]


def make_sample(height: int, width: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (height, width), dtype=np.uint8)
    label[rng.random((height, width)) < 0.1] = 255
    return Sample(image, label, "random")


def whole(sample: Sample, scale: float, crop: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """The straightforward way: everything is scaled, then padded at the bottom and the right."""
    image = cv2.resize(sample.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(sample.label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    pad = [(0, max(0, c - s)) for c, s in zip(crop, label.shape, strict=True)]
    return np.pad(image, [*pad, (0, 0)]), np.pad(label, pad, constant_values=PADDING_LABEL)


@pytest.mark.parametrize("scale", [*SCALES, Fraction(1, 4), Fraction(5)], ids=str)
@pytest.mark.parametrize("size", [(120, 163), (37, 200), (91, 107)])
def test_a_window_equals_the_scaled_whole(scale: Fraction, size: tuple[int, int]) -> None:
    sample, crop = make_sample(*size), (64, 80)
    image, label = whole(sample, float(scale), crop)
    rng = np.random.default_rng(1)
    for _ in range(6):
        top, left = (int(rng.integers(0, s - c + 1)) for s, c in zip(label.shape, crop, strict=True))
        window = np.s_[top : top + crop[0], left : left + crop[1]]
        np.testing.assert_array_equal(scaled_labels(sample, Crop(scale, top, left), crop), label[window])
        got = scaled_window(sample, Crop(scale, top, left), crop).astype(int)
        difference = np.abs(got - image[window])
        # OpenCV rounds sampling positions in float32; at 1.9 the offset of a window turns some by one step.
        assert difference.max() <= (1 if scale == SCALES[14] else 0)
        assert np.count_nonzero(difference) < 0.01 * difference.size


def test_the_transform_equals_the_straightforward_one_with_the_same_draws() -> None:
    sample, transform = make_sample(90, 150), TrainTransform(crop=(96, 128))
    flips = 0
    for n in range(60):
        rng, again = np.random.default_rng(n), np.random.default_rng(n)
        image, label = transform(sample, rng)
        scale = 0.5 + int(again.integers(16)) / 10
        all_image, all_label = whole(sample, scale, (96, 128))
        top, left = (int(again.integers(s - c + 1)) for s, c in zip(all_label.shape, (96, 128), strict=True))
        image_part = all_image[top : top + 96, left : left + 128]
        label_part = all_label[top : top + 96, left : left + 128]
        if again.random() < 0.5:
            flips += 1
            image_part, label_part = image_part[:, ::-1], label_part[:, ::-1]
        np.testing.assert_array_equal(label, label_part)
        assert np.abs(image.astype(int) - image_part).max() <= 1
        assert image.flags["C_CONTIGUOUS"]
        assert label.flags["C_CONTIGUOUS"]
    assert 15 < flips < 45


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    crop=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    tenths=st.integers(5, 20),
    seed=st.integers(0, 2**32),
    axis=st.sampled_from([0, 1]),
)
def test_image_and_labels_stay_aligned_and_invented_pixels_are_marked(
    size: tuple[int, int], crop: tuple[int, int], tenths: int, seed: int, axis: int
) -> None:
    """Image and labels hold each pixel's row (or column): both tell where a pixel of the crop is from."""
    scale = tenths / 10
    place = np.indices(size, dtype=np.uint8)[axis]
    sample = Sample(np.repeat(place[..., None], 3, axis=2), place, "rows or columns")
    transform = TrainTransform(crop=crop, scale_range=(scale, scale))
    image, label = transform(sample, np.random.default_rng(seed))
    assert (image.shape, label.shape) == ((*crop, 3), crop)

    real = label != PADDING_LABEL
    assert (image[~real] == 0).all()
    inside = [min(c, max(1, round(s * scale))) for s, c in zip(size, crop, strict=True)]
    rows, columns = np.flatnonzero(real.any(axis=1)), np.flatnonzero(real.any(axis=0))
    assert real.sum() == inside[0] * inside[1]
    assert (len(rows), len(columns), rows[0]) == (*inside, 0)
    assert columns[0] == 0 or columns[-1] == crop[1] - 1, "padded at the right, or flipped"

    # Bilinear sampling looks at (i + 1/2) / scale - 1/2, nearest neighbour at floor(i / scale).
    apart = np.abs(image[..., 0].astype(int) - label)[real]
    assert apart.max() <= 0.5 / scale + 1.5
    steps = np.diff(label.astype(int), axis=axis)[
        real[1:] & real[:-1] if axis == 0 else real[:, 1:] & real[:, :-1]
    ]
    assert (steps >= 0).all() or (axis == 1 and (steps <= 0).all()), "in order, or flipped"


def test_padding_is_marked_and_black() -> None:
    transform = TrainTransform(crop=(64, 64), scale_range=(0.5, 0.5), flip=0.0)
    image, label = transform(make_sample(40, 60), np.random.default_rng(0))
    assert (label[20:] == PADDING_LABEL).all()
    assert (label[:, 30:] == PADDING_LABEL).all()
    assert (image[20:] == 0).all()
    assert (label[:20, :30] != PADDING_LABEL).all()


def test_a_long_period_falls_back_to_the_whole() -> None:
    sample, crop = make_sample(100, 130), (48, 48)
    image, label = whole(sample, 0.777, crop)
    place = Crop(Fraction(777, 1000), 20, 31)
    np.testing.assert_array_equal(scaled_window(sample, place, crop), image[20:68, 31:79])
    np.testing.assert_array_equal(scaled_labels(sample, place, crop), label[20:68, 31:79])


def test_only_the_needed_part_is_asked_for() -> None:
    asked: list[int] = []

    class Spy(Sample):
        def image_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
            asked.append((bottom - top) * (right - left))
            return super().image_window(top, left, bottom, right)

    plain = make_sample(400, 800)
    spy = Spy(plain.image, plain.label, plain.name)
    scaled_window(spy, Crop(Fraction(2), 300, 500), (128, 256))
    assert asked[0] < 1.1 * 64 * 128


def test_the_scales_are_the_published_ones() -> None:
    assert TrainTransform(crop=(64, 64)).scales == SCALES
    assert TrainTransform(crop=(64, 64), scale_range=(1.0, 1.0)).scales == [Fraction(1)]
    with refuses("data.scale_range", ConfigError, 2.0, 0.5):
        TrainTransform(crop=(64, 64), scale_range=(2.0, 0.5))


def test_a_balanced_crop_avoids_one_class() -> None:
    label = np.zeros((100, 400), np.uint8)
    label[:, 330:] = 1
    sample = Sample(np.zeros((100, 400, 3), np.uint8), label, "mostly class 0")
    shares = {}
    for limit in (1.0, 0.75):
        transform = TrainTransform(crop=(64, 64), scale_range=(1.0, 1.0), max_class_share=limit)
        shares[limit] = np.mean(
            [largest_share(transform(sample, np.random.default_rng(n))[1]) for n in range(80)]
        )
    assert shares[0.75] < 0.87 < 0.93 < shares[1.0]


def test_largest_share_looks_at_labelled_pixels_only() -> None:
    assert largest_share(np.array([[0, 0, 1, 255, 254, 255]], np.uint8)) == pytest.approx(2 / 3)
    assert largest_share(np.full((2, 2), 255, np.uint8)) == 1.0
