"""What every registered data set must be."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from cirkd_ray.config import load_run
from cirkd_ray.data import DATASETS, SegmentationDataset
from cirkd_ray.data.build import build_dataset
from cirkd_ray.errors import ConfigError, DataError
from tests.errors import refuses

NAMES = DATASETS.names()


def test_the_six_sets_and_the_embedded_one_are_there() -> None:
    assert {"cityscapes", "voc", "camvid", "ade20k", "coco_stuff_164k", "folder", "shapes"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_describes_itself(name: str) -> None:
    cls = DATASETS.get(name)
    assert issubclass(cls, SegmentationDataset)
    assert inspect.getdoc(cls), "users read the docstring"
    assert len(cls.default_crop) == 2
    assert min(cls.default_crop) >= 32
    DATASETS.settings(name)()
    classes = getattr(cls, "classes", None)
    if classes is not None:
        assert 2 <= len(classes) <= 253
        assert len(set(classes.names)) == len(classes)
        assert all(0 <= value <= 255 for colour in classes.palette for value in colour)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_errors_of_the_user(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    cls, empty = DATASETS.get(name), tmp_path_factory.mktemp("empty")
    with refuses("data.no_such_thing", ConfigError):
        build_dataset(name, split="train", root=empty, no_such_thing=1)
    if cls.splits:
        with refuses("data", ConfigError, "'nix'"):
            build_dataset(name, split="nix", root=empty)
    if cls.needs_root:
        with refuses("data.root", DataError, f"{name!r}", "--set data.root=PATH"):
            build_dataset(name, split="train")
        with pytest.raises(DataError):
            build_dataset(name, split="train", root=empty)
    else:
        data = build_dataset(name, split="train")
        sample = data.load(0)
        assert sample.image.shape[:2] == sample.label.shape
        assert data.name(0) == sample.name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_every_data_set_resolves(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{name: deeplabv3:resnet10t}}\ndata: {{name: {name}}}\n")
    spec = load_run(str(recipe))
    assert spec.data.name == name
    assert spec.data.crop == DATASETS.get(name).default_crop
