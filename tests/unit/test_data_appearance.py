"""Further augmentation: what it changes, a function of (seed, n), and off by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cirkd_ray.config import from_tree
from cirkd_ray.data.appearance import Appearance
from cirkd_ray.data.loader import Batch, train_loader
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.errors import ConfigError
from tests.errors import refuses
from tests.tiny import RandomSet
from tests.tinyrun import tiny_tree

DATA = RandomSet(6, sizes=((40, 48),))
CROP = TrainTransform(crop=(24, 32), scale_range=(1.0, 1.0))


def batches(appearance: Appearance | None, start: int = 0, **options: object) -> list[Batch]:
    settings = {
        "seed": 3,
        "global_batch": 4,
        "total_steps": 3,
        "start_step": start,
        **options,
    }
    return list(train_loader(DATA, CROP, appearance=appearance, **settings))  # type: ignore[arg-type]


def same(first: Batch, second: Batch) -> tuple[bool, bool]:
    return torch.equal(first.images, second.images), torch.equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("appearance", "labels_stay"),
    [
        (Appearance(color_jitter=(0.4, 0.4, 0.4, 0.1)), True),
        (Appearance(blur=1.0), True),
        (Appearance(erase=1.0), True),
        (Appearance(paste=1.0), False),
    ],
)
def test_each_changes_the_image_and_is_a_function_of_seed_and_number(
    appearance: Appearance, labels_stay: bool
) -> None:
    plain, changed = batches(None), batches(appearance)
    for before, after in zip(plain, changed, strict=True):
        assert same(before, after) == (False, labels_stay)
        assert after.images.dtype == torch.uint8
    assert same(changed[2], batches(appearance, start=2)[0]) == (True, True)
    halves = [batches(appearance, rank=rank, world_size=2) for rank in range(2)]
    joined = torch.cat([half[1].images for half in halves])
    assert torch.equal(joined, changed[1].images)


def test_off_by_default() -> None:
    assert not Appearance().changes
    assert all(same(a, b) == (True, True) for a, b in zip(batches(None), batches(Appearance()), strict=True))


def test_what_is_pasted_comes_with_its_labels() -> None:
    image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    source = np.full((8, 8), 254, np.uint8)
    source[:4], source[4, :4], source[4, 4:] = 1, 2, 255
    other = np.repeat((source * 20)[..., None], 3, axis=2)
    for seed in range(8):
        found = Appearance(paste=1.0)((image, label), np.random.default_rng(seed), lambda: (other, source))
        chosen = set(np.unique(found[1])) - {0}
        assert chosen in ({1}, {2})  # half of its two classes; nothing ignored, no padding
        assert np.array_equal(found[0][..., 0], found[1] * 20)


def test_an_erased_rectangle_has_the_mean_colour_and_the_usual_size() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label = np.zeros((40, 60), np.uint8)
    for seed in range(10):
        after, _ = Appearance(erase=1.0)((image, label), np.random.default_rng(seed), lambda: (image, label))
        changed = (after != image).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(-1, 3)
        assert (box == np.round(image.mean((0, 1)))).all()
        assert 0.01 < len(box) / 2400 < 0.35


def test_jitter_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional

    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rng = np.random.default_rng(5)
    found, _ = Appearance((0.5, 0.0, 0.0, 0.0))((image, image[..., 0]), rng, lambda: (image, image[..., 0]))
    again = np.random.default_rng(5)
    again.random()
    factor = 0.5 + float(again.uniform(size=4)[0])
    expected = functional.adjust_brightness(torch.from_numpy(image).permute(2, 0, 1), factor)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())


def test_bounds() -> None:
    with refuses("data.color_jitter.3", ConfigError, "0.7"):
        from_tree(tiny_tree(data={"color_jitter": [0, 0, 0, 0.7]}))
