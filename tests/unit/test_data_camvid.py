"""CamVid: right classes on the real files, and clear errors for wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cirkd_ray.data import build_dataset
from cirkd_ray.data.camvid import CamVid
from cirkd_ray.data.files import metadata
from cirkd_ray.data.label_map import IMPOSSIBLE, LabelMap
from cirkd_ray.errors import DataError
from tests.errors import refuses
from tests.paths import data_root


def pixel_counts(split: str) -> dict[str, int]:
    root = data_root("camvid")
    data = build_dataset("camvid", split=split, root=root)
    counts = sum(np.bincount(data.load(i).label.ravel(), minlength=256) for i in range(len(data)))
    return {str(11 if value == 255 else value): int(n) for value, n in enumerate(counts) if n}


def test_pixel_counts_of_val_equal_the_published_ones() -> None:
    expected = json.loads((data_root("meta") / "camvid.json").read_text())["pixel_counts"]
    assert pixel_counts("val") == expected["val"]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_pixel_counts_equal_the_published_ones(split: str) -> None:
    expected = json.loads((data_root("meta") / "camvid.json").read_text())["pixel_counts"]
    assert pixel_counts(split) == expected[split]


def test_splits_follow_the_lists() -> None:
    root = data_root("camvid")
    sizes = {
        split: len(build_dataset("camvid", split=split, root=root)) for split in metadata("camvid")["splits"]
    }
    assert sizes == {"train": 367, "val": 101, "test": 233}
    both = build_dataset("camvid", split="trainval", root=root)
    assert len(both) == 468
    assert both.name(0) == "train/0001TP_006690.png"
    assert both.name(467).startswith("val/")
    assert both.classes.names[3] == "Road"
    assert both.classes.palette[3] == (128, 64, 128)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A root of the same layout with two images a split: one name has a space, one an umlaut."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a b", "übung"):
            for folder, shape, top in ((split, (18, 24, 3), 256), (f"{split}annot", (18, 24), 12)):
                path = tmp_path / "root" / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                data = cv2.imencode(".png", rng.integers(0, top, shape, dtype=np.uint8))[1]
                path.write_bytes(data.tobytes())
    return tmp_path / "root"


def test_folders_serve_where_there_is_no_list(small: Path) -> None:
    data = build_dataset("camvid", split="val", root=small)
    assert [data.name(i) for i in range(2)] == ["val/a b.png", "val/übung.png"]
    sample = data.load(1)
    stored = cv2.imdecode(np.fromfile(small / "valannot" / "übung.png", np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample.label, np.where(stored == 11, 255, stored))


def test_segnets_own_list_is_understood(small: Path) -> None:
    (small / "val.txt").write_text("/SegNet/CamVid/val/übung.png /SegNet/CamVid/valannot/übung.png\n\n")
    data = build_dataset("camvid", split="val", root=small)
    assert [data.name(i) for i in range(len(data))] == ["val/übung.png"]
    (small / "val.txt").write_text("something else\n")
    with refuses(small / "val.txt", DataError, "val/", "something else"):
        build_dataset("camvid", split="val", root=small)


def test_a_wrong_root_says_what_is_expected(small: Path, tmp_path: Path) -> None:
    with refuses("data.root", DataError, tmp_path / "nowhere", "exist"):
        build_dataset("camvid", split="val", root=tmp_path / "nowhere")
    with refuses("data.root", DataError, small / "val" / "a b.png", "folder"):
        build_dataset("camvid", split="val", root=small / "val" / "a b.png")
    with refuses("data.root", DataError, "'camvid'"):
        build_dataset("camvid", split="val")
    with refuses(small / "test", DataError, "data.root: train/"):
        build_dataset("camvid", split="test", root=small)


def test_an_empty_split_is_an_error(small: Path) -> None:
    for path in (*(small / "val").iterdir(), *(small / "valannot").iterdir()):
        path.rename(path.with_suffix(".txt"))
    with refuses(f"{small}, split 'val'", DataError, "images", "trainannot/"):
        build_dataset("camvid", split="val", root=small)


def test_missing_files_are_counted_and_named_when_the_set_is_opened(small: Path) -> None:
    (small / "valannot" / "a b.png").unlink()
    with refuses(f"{small}, split 'val'", DataError, "1 file", "valannot/a b.png"):
        build_dataset("camvid", split="val", root=small)


def test_labels_without_images_are_missed_where_there_is_no_list(small: Path) -> None:
    (small / "val" / "a b.png").unlink()
    with refuses(f"{small}, split 'val'", DataError, "1 file", ": val/a b.png"):
        build_dataset("camvid", split="val", root=small)
    data = build_dataset("camvid", split="val", root=small, subset=True)
    assert isinstance(data, CamVid)
    assert ([data.name(i) for i in range(len(data))], data.missing) == (["val/übung.png"], ["val/a b.png"])


def test_bad_files_are_named_when_they_are_read(small: Path) -> None:
    data = build_dataset("camvid", split="val", root=small)
    image, label = small / "val" / "a b.png", small / "valannot" / "a b.png"
    whole = {path: path.read_bytes() for path in (image, label)}

    image.write_bytes(whole[image][:-40])
    with refuses(image, DataError, "truncated"):
        data.load(0)
    image.write_bytes(whole[image])
    label.write_bytes(whole[label][:80])
    with refuses(label, DataError, "truncated"):
        data.load(0)
    shutil.copy(image, label)
    with refuses(label, DataError, "RGB"):
        data.load(0)
    label.write_bytes(cv2.imencode(".png", np.zeros((18, 25), np.uint8))[1].tobytes())
    with refuses(label, DataError, "25x18", "val/a b.png 24x18"):
        data.load(0)
    odd = np.zeros((18, 24), np.uint8)
    odd[0, :3], odd[1, 0] = 12, 200
    label.write_bytes(cv2.imencode(".png", odd)[1].tobytes())
    with refuses(label, DataError, "12 (3 pixels), 200 (1 pixels)", "0-11"):
        data.load(0)
    image.unlink()
    with refuses(image, DataError, "No such file"):
        data.load(0)


def test_label_maps_find_every_impossible_value() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        allowed = np.flatnonzero(rng.random(256) < rng.choice([0.05, 0.5, 0.95]))
        mapping = {int(v): int(rng.integers(0, 200)) for v in allowed}
        table = LabelMap(mapping)
        for value in rng.integers(0, 256, 30).tolist():
            stored = np.full((3, 4), allowed[0] if len(allowed) else value, np.uint8)
            stored[1, 2] = value
            if value in mapping and len(allowed):
                assert table(stored, "x")[1, 2] == mapping[value]
            else:
                with refuses("x", DataError, value):
                    table(stored, "x")
    assert IMPOSSIBLE < 0
