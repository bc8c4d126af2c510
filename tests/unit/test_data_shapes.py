"""The drawn street scenes: functions of (seed, n), with all classes, hard enough to be worth learning."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from cirkd_ray.data import build_dataset
from cirkd_ray.data.shapes.canvas import Camera
from cirkd_ray.data.shapes.stage import Chance, Label
from cirkd_ray.data.shapes.textures import noise, noise_window
from cirkd_ray.errors import ConfigError
from tests.errors import refuses


def test_a_scene_is_a_function_of_seed_split_and_number() -> None:
    one, two = (build_dataset("shapes", split="train") for _ in range(2))
    two.load(3)
    first, again = one.load(5), two.load(5)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    others = [
        one.load(6),
        build_dataset("shapes", split="val").load(5),
        build_dataset("shapes", split="train", seed=1).load(5),
    ]
    assert all((other.label != first.label).mean() > 0.02 for other in others)


@pytest.mark.parametrize(("height", "width"), [(128, 256), (97, 64), (300, 700)])
def test_any_size(height: int, width: int) -> None:
    sample = build_dataset("shapes", split="val", height=height, width=width).load(0)
    assert sample.image.shape == (height, width, 3)
    assert sample.label.shape == (height, width)
    assert sample.image.dtype == sample.label.dtype == np.uint8
    assert sample.image.std() > 15


SCENES = {
    (128, 256): (2366991637, [118.300, 104.956, 87.850]),
    (97, 64): (1532876153, [117.682, 118.492, 110.165]),
    (300, 700): (2242467719, [108.043, 106.182, 88.823]),
}
"""CRC of the labels, and mean of each channel, of scenes 0..5 of val."""


@pytest.mark.parametrize("size", SCENES)
def test_the_scenes_are_pinned(size: tuple[int, int]) -> None:
    """Another scene would change the figures of everyone's quick start.

    Labels are compared exactly; images by their means, since float arithmetic may differ between processors.
    """
    data = build_dataset("shapes", split="val", height=size[0], width=size[1])
    samples = [data.load(i) for i in range(6)]
    labels, means = SCENES[size]
    assert zlib.crc32(b"".join(sample.label.tobytes() for sample in samples)) == labels
    found = np.mean([sample.image.mean(axis=(0, 1)) for sample in samples], axis=0)
    np.testing.assert_allclose(found, means, atol=2e-3)


def test_classes_are_all_there_and_unequal() -> None:
    data = build_dataset("shapes", split="val")
    counts, seen = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in range(60):
        now = np.bincount(data.load(i).label.ravel(), minlength=256)
        counts += now
        seen += now > 0
    assert np.flatnonzero(counts).tolist() == list(range(len(data.classes)))
    assert len(data.classes) == len(Label)
    assert all(label.name.lower() == data.classes.names[label] for label in Label)
    share = counts[: len(data.classes)] / counts.sum()
    assert share[Label.ROAD] > 8 * share[Label.PERSON] > 0
    assert share.min() > 0.015
    assert (seen[: len(data.classes)] >= 25).all()


def test_coarse_labels_are_the_whole_ones_away_from_every_edge() -> None:
    size = {"height": 64, "width": 128}
    whole = build_dataset("shapes", split="train", **size).load(3)
    coarse = build_dataset("shapes", split="train", coarse=2, **size).load(3)
    np.testing.assert_array_equal(coarse.image, whole.image)
    kept = coarse.label != 255
    np.testing.assert_array_equal(coarse.label[kept], whole.label[kept])
    edges = np.zeros_like(kept)
    for by, axis in ((1, 0), (2, 0), (1, 1), (2, 1)):
        differs = whole.label != np.roll(whole.label, by, axis)
        differs[(slice(None),) * axis + (slice(by),)] = False
        edges |= differs
    assert not kept[edges].any()
    assert 0.4 < kept.mean() < 0.9
    again = build_dataset("shapes", split="val", coarse=2, **size).load(3)
    np.testing.assert_array_equal(again.label, build_dataset("shapes", split="val", **size).load(3).label)


def test_colours_alone_do_not_tell_the_classes() -> None:
    """The best guess from a pixel's colour (trained on the very pixels it is scored on) stays poor."""
    data = build_dataset("shapes", split="train")
    table = np.zeros((16**3, len(data.classes)), np.int64)
    for i in range(60):
        sample = data.load(i)
        known = sample.label < len(data.classes)
        colour = (sample.image[known] >> 4).astype(np.int64) @ np.array([256, 16, 1])
        np.add.at(table, (colour, sample.label[known]), 1)
    guess = table.argmax(axis=1)
    hit = np.bincount(guess, weights=table[np.arange(len(table)), guess], minlength=len(data.classes))
    union = (
        table.sum(axis=0) + np.bincount(guess, weights=table.sum(axis=1), minlength=len(data.classes)) - hit
    )
    assert (hit / union).mean() < 0.25


def test_settings_are_validated() -> None:
    assert len(build_dataset("shapes", split="val", val_images=7)) == 7
    assert build_dataset("shapes", split="val").name(12) == "val_000012"
    with pytest.raises(IndexError, match="no number 200"):
        build_dataset("shapes", split="val").load(200)
    with refuses("data.height", ConfigError):
        build_dataset("shapes", split="val", height=3)
    with refuses("data", ConfigError, "'test'"):
        build_dataset("shapes", split="test")


def test_the_camera_is_a_pinhole() -> None:
    camera = Camera(focal=200, centre=128, horizon=60, height=1.5, roll=0.02, bend=0.002, slant=0.03)
    x, y, z = 2.0, 0.5, 10.0
    u = 200 * (x + 0.03 * z + 0.002 * z * z) / z
    expected = [128 + u, 60 + 0.02 * u + 200 * (1.5 - y) / z]
    np.testing.assert_allclose(camera.point(x, y, z), expected)
    np.testing.assert_allclose(camera.project(np.array([x, x]), y, np.array([z, z])), [expected, expected])


def test_block_drawn_numbers_are_fair() -> None:
    draw = Chance(np.random.default_rng(0))
    counts = [draw.count(2.6) for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(2.6, abs=0.12)
    assert np.var(counts) == pytest.approx(2.6, abs=0.3)
    assert {draw.below(5) for _ in range(200)} == set(range(5))


def test_noise_repeats_and_is_normalised() -> None:
    field = noise("grain")
    np.testing.assert_array_equal(field[:256, :256], field[256:, 256:])
    assert abs(float(field.mean())) < 1e-3
    assert float(field.std()) == pytest.approx(1.0, abs=1e-3)
    assert noise_window("sensor", Chance(np.random.default_rng(0)), 700, 900).shape == (700, 900)
