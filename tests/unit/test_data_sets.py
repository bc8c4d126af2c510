"""Cityscapes, VOC, ADE20K, COCO-Stuff: the right classes from real samples and from made-up roots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cirkd_ray.data import build_dataset
from cirkd_ray.data.cityscapes import LABEL_IDS
from cirkd_ray.data.files import FileDataset, packaged_list
from cirkd_ray.errors import ConfigError, DataError
from tests.errors import refuses
from tests.paths import data_root


def open_set(name: str, split: str, root: Path, **settings: object) -> FileDataset:
    data = build_dataset(name, split=split, root=root, **settings)  # type: ignore[arg-type]
    assert isinstance(data, FileDataset)
    return data


def write_pair(root: Path, image: str, label: str, stored: np.ndarray) -> None:
    shape = (*stored.shape, 3)
    for path, content in ((image, np.full(shape, 90, np.uint8)), (label, stored.astype(np.uint8))):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(cv2.imencode(Path(path).suffix, content)[1].tobytes())


def stored_values(path: Path) -> np.ndarray:
    """The indices as Pillow sees them: another reader than the package's for gray files."""
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("name", ["cityscapes", "voc", "ade20k", "coco_stuff_164k", "camvid"])
def test_packaged_facts_equal_the_published_ones(name: str) -> None:
    """Names, colours and counts against the folder of facts."""
    facts = json.loads((data_root("meta") / f"{name}.json").read_text())
    from cirkd_ray.data.files import class_set, metadata

    classes = class_set(name)
    expected = [row["name"] for row in facts["classes"]]
    if name == "ade20k":  # two classes are named "screen" there: told apart by their synonyms
        expected[58], expected[130] = "screen door", "projection screen"
    assert list(classes.names) == expected
    if "color" in facts["classes"][0]:
        assert [list(colour) for colour in classes.palette] == [row["color"] for row in facts["classes"]]
    assert len(set(classes.palette)) >= len(classes) - 2
    assert list(metadata(name)["splits"].values())[:2] == list(facts["splits"].values())[:2]


@pytest.mark.parametrize(
    ("name", "split", "path", "column"),
    [
        ("cityscapes", "train", "cityscapes/train.lst", 0),
        ("cityscapes", "val", "cityscapes/val.lst", 0),
        ("cityscapes", "test", "cityscapes/test.lst", 0),
        ("voc", "train", "voc/train_aug.txt", 0),
        ("voc", "val", "voc/val.txt", 0),
        ("coco_stuff_164k", "train", "coco_stuff_164k/coco_stuff_164k_train.txt", 0),
        ("coco_stuff_164k", "val", "coco_stuff_164k/coco_stuff_164k_val.txt", 0),
    ],
)
def test_packaged_lists_equal_the_published_ones(name: str, split: str, path: str, column: int) -> None:
    lines = [line.split()[column] for line in (data_root("lists") / path).read_text().splitlines() if line]
    ids = packaged_list(name, split)
    if name == "cityscapes":
        ids = [f"leftImg8bit/{split}/{i}_leftImg8bit.png" for i in ids]
    assert sorted(ids) == sorted(lines)
    assert len(set(ids)) == len(ids)


def test_cityscapes_ids_become_training_classes(tmp_path: Path) -> None:
    """All 34 ids: the 19 of the paper get their class, the others are ignored."""
    facts = json.loads((data_root("meta") / "cityscapes.json").read_text())
    expected = {row["labelId"]: row["trainId"] for row in facts["labelIds"] if row["labelId"] >= 0}
    stem = packaged_list("cityscapes", "val")[3]
    image, label = f"leftImg8bit/val/{stem}_leftImg8bit.png", f"gtFine/val/{stem}_gtFine_labelIds.png"
    write_pair(tmp_path, image, label, np.arange(34).reshape(2, 17))
    data = open_set("cityscapes", "val", tmp_path, subset=True)
    assert (len(data), len(data.missing)) == (1, 998)
    got = data.load(0).label.ravel().tolist()
    assert got == [255 if expected[i] is None else expected[i] for i in range(34)]
    assert [got[i] for i in LABEL_IDS] == list(range(19))

    write_pair(tmp_path, image, label, np.full((2, 17), 34))
    with refuses(tmp_path / label, DataError, "34 (34 pixels)"):
        data.load(0)


def test_the_test_split_of_cityscapes_has_no_labels(tmp_path: Path) -> None:
    stem = packaged_list("cityscapes", "test")[0]
    write_pair(tmp_path, f"leftImg8bit/test/{stem}_leftImg8bit.png", "unused.png", np.zeros((4, 6)))
    data = open_set("cityscapes", "test", tmp_path, subset=True)
    assert data.name(0) == "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    assert (data.load(0).label == 255).all()


def test_voc_train_and_val_samples() -> None:
    root = data_root("samples/voc")
    train, val = (open_set("voc", split, root, subset=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 6)
    assert train.ids == (root / "lists/train_aug.txt").read_text().split()
    assert val.ids == (root / "lists/val.txt").read_text().split()
    for data, folder in ((train, "SegmentationClassAug"), (val, "SegmentationClass")):
        for i, sample_id in enumerate(data.ids):
            expected = stored_values(root / folder / f"{sample_id}.png")
            np.testing.assert_array_equal(data.load(i).label, expected)
            aug = stored_values(root / "SegmentationClassAug" / f"{sample_id}.png")
            np.testing.assert_array_equal(data.load(i).label, aug)


def test_palette_and_gray_labels_are_the_same(tmp_path: Path) -> None:
    """The fixture that the reference's reader gets wrong: colours turned to gray instead of indices."""
    root = data_root("samples/voc")
    (tmp_path / "JPEGImages").symlink_to(root / "JPEGImages")
    (tmp_path / "SegmentationClassAug").symlink_to(root / "fixtures" / "SegmentationClassAug_palette")
    palette, gray = (open_set("voc", "train", place, subset=True) for place in (tmp_path, root))
    assert len(palette) == len(gray) == 10
    wrong = 0
    for i in range(10):
        path = tmp_path / palette.label_file(palette.ids[i])
        assert Image.open(path).mode == "P"
        np.testing.assert_array_equal(palette.load(i).label, gray.load(i).label)
        naive = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        wrong += bool((naive != gray.load(i).label).any())
    assert wrong == 10


def test_voc_inside_its_devkit(tmp_path: Path) -> None:
    stem = packaged_list("voc", "val")[0]
    base = "VOCdevkit/VOC2012"
    write_pair(
        tmp_path, f"{base}/JPEGImages/{stem}.jpg", f"{base}/SegmentationClass/{stem}.png", np.eye(9) * 20
    )
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / base):
        data = open_set("voc", "val", root, subset=True)
        np.testing.assert_array_equal(data.load(0).label, (np.eye(9) * 20).astype(np.uint8))


@pytest.mark.parametrize(("split", "part", "count"), [("train", "training", 1), ("val", "validation", 3)])
def test_ade20k_samples(split: str, part: str, count: int) -> None:
    root = data_root("samples/ade20k")
    data = open_set("ade20k", split, root, subset=True)
    assert len(data) == count
    for i, sample_id in enumerate(data.ids):
        stored = stored_values(root / "annotations" / part / f"{sample_id}.png").astype(int)
        assert 0 in stored
        np.testing.assert_array_equal(data.load(i).label, np.where(stored == 0, 255, stored - 1))


def test_coco_stuff_in_both_forms() -> None:
    root = data_root("samples/coco_stuff_164k")
    absent = json.loads((data_root("meta") / "coco_stuff_164k.json").read_text())["absent_ids"]
    for split, count in (("train", 13), ("val", 8)):
        full = open_set("coco_stuff_164k", split, root, subset=True)
        closed = open_set("coco_stuff_164k", split, root, subset=True, label_set=171)
        assert len(full) == len(closed) == count
        assert (len(full.classes), len(closed.classes)) == (182, 171)
        for i, sample_id in enumerate(full.ids):
            stored = stored_values(root / "annotations" / f"{split}2017" / f"{sample_id}.png")
            np.testing.assert_array_equal(full.load(i).label, stored)
            label = closed.load(i).label
            np.testing.assert_array_equal(label == 255, stored == 255)
            for value in np.unique(stored[stored < 255]).tolist():
                index = int(label[stored == value][0])
                assert closed.classes.names[index] == full.classes.names[value]
                assert index == value - sum(a < value for a in absent)


def test_an_absent_id_is_impossible_in_the_closed_form(tmp_path: Path) -> None:
    stem = packaged_list("coco_stuff_164k", "val")[0]
    write_pair(tmp_path, f"val2017/{stem}.jpg", f"stuffthingmaps/val2017/{stem}.png", np.full((4, 4), 11))
    assert (open_set("coco_stuff_164k", "val", tmp_path, subset=True).load(0).label == 11).all()
    with refuses(tmp_path / f"stuffthingmaps/val2017/{stem}.png", DataError, "11 (16 pixels)"):
        open_set("coco_stuff_164k", "val", tmp_path, subset=True, label_set=171).load(0)
    with refuses("data.label_set", ConfigError):
        open_set("coco_stuff_164k", "val", tmp_path, label_set=170)


@pytest.mark.parametrize(
    ("name", "folder", "hint"),
    [
        ("cityscapes", "leftImg8bit/val", "leftImg8bit/train/CITY/"),
        ("voc", "JPEGImages", "JPEGImages/"),
        ("ade20k", "images/validation", "images/training"),
        ("coco_stuff_164k", "images/val2017", "images/train2017"),
    ],
)
def test_a_root_without_the_folders_and_one_with_holes(
    name: str, folder: str, hint: str, tmp_path: Path
) -> None:
    with refuses(tmp_path / folder, DataError, f"data.root: {hint}"):
        build_dataset(name, split="val", root=tmp_path)


def test_holes_are_counted(tmp_path: Path) -> None:
    write_pair(
        tmp_path,
        "images/validation/ADE_val_00000007.jpg",
        "annotations/validation/ADE_val_00000007.png",
        np.eye(3),
    )
    with refuses(
        f"{tmp_path}, split 'val'",
        DataError,
        "3998 files",
        "images/validation/ADE_val_00000001.jpg",
        "--set data.subset=true",
    ):
        build_dataset("ade20k", split="val", root=tmp_path)
    (tmp_path / "annotations/validation/ADE_val_00000007.png").rename(
        tmp_path / "annotations/validation/ADE_val_99999999.png"
    )
    with refuses(f"{tmp_path}, split 'val'", DataError, "images"):
        build_dataset("ade20k", split="val", root=tmp_path, subset=True)


def make_folder(root: Path, description: Mapping[str, object] | str, names: Mapping[str, int]) -> Path:
    """A `folder` data set whose label maps hold one value each."""
    for name, value in names.items():
        write_pair(root, f"images/{name}.png", f"labels/{name}.png", np.full((5, 7), value))
    text = description if isinstance(description, str) else json.dumps(description)
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    return root


YAML = """
classes: [road, Übung, sky]
palette: [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
ids: {7: road, 8: 0, 11: Übung, 23: 2}
ignore: [0, 255]
"""


def test_folder_reads_names_ids_and_palette(tmp_path: Path) -> None:
    names = {"train/a b/frame10": 11, "train/a b/frame9": 7, "train/v1.0/ö": 23, "train/x": 0, "other/x": 8}
    data = open_set("folder", "train", make_folder(tmp_path, YAML, names))
    expected = ["images/train/a b/frame9.png", "images/train/a b/frame10.png"]
    assert [data.name(i) for i in range(4)] == [*expected, "images/train/v1.0/ö.png", "images/train/x.png"]
    assert [int(data.load(i).label[0, 0]) for i in range(4)] == [0, 1, 2, 255]
    assert data.classes.names == ("road", "Übung", "sky")
    assert data.classes.palette[2] == (7, 8, 9)
    assert open_set("folder", "other", tmp_path).load(0).label[0, 0] == 0
    one = open_set("folder", "train", make_folder(tmp_path, YAML.replace("[0, 255]", "0"), names))
    assert int(one.load(3).label[0, 0]) == 255


def test_folder_orders_names_with_digits_that_are_no_numbers(tmp_path: Path) -> None:
    names = dict.fromkeys(("train/scene_10²", "train/scene_9", "train/scene_²", "train/scene_١٢"), 0)
    data = open_set("folder", "train", make_folder(tmp_path, {"classes": ["a"]}, names))
    order = [Path(data.name(i)).stem for i in range(4)]
    assert order == ["scene_9", "scene_10²", "scene_١٢", "scene_²"], "the third is 12 in Arabic digits"


def test_folder_with_a_list_and_default_ids(tmp_path: Path) -> None:
    make_folder(tmp_path, {"classes": ["a", "b"]}, {"x": 1, "deep/y": 255, "z": 5})
    (tmp_path / "mine.txt").write_text("deep/y\nx\n")
    data = open_set("folder", "mine", tmp_path)
    assert [int(data.load(i).label[0, 0]) for i in range(2)] == [255, 1]
    assert len(set(data.classes.palette)) == 2
    (tmp_path / "mine.txt").write_text("z\n")
    with refuses(tmp_path / "labels/z.png", DataError, 5, "0-1, 255"):
        open_set("folder", "mine", tmp_path).load(0)
    (tmp_path / "mine.txt").write_text("x\nz\nx\n")
    with refuses(f"{tmp_path}, split 'mine'", DataError, "1 name", "x (listed 2 times)"):
        open_set("folder", "mine", tmp_path)
    (tmp_path / "mine.txt").write_text("nix\n")
    with refuses(f"{tmp_path}, split 'mine'", DataError, "2 files", "images/nix.png, labels/nix.png"):
        open_set("folder", "mine", tmp_path)


@pytest.mark.parametrize(
    ("description", "key", "fact"),
    [
        ({"classes": ["a", "a"]}, "", "classes: a name comes twice"),
        ({"classes": []}, ".classes", "at least 1"),
        ({"classes": ["a"], "palette": []}, "", "palette: 0 colours for 1 classes"),
        ({"classes": ["a"], "ids": {"3": "b"}}, "", "ids.3: no class 'b'"),
        ({"classes": ["a"], "ids": {"300": "a"}}, ".ids.300.[key]", "255"),
        ({"classes": ["a"], "ids": {"3": 0}, "ignore": [3]}, "", "ids.3: the value is also in ignore"),
        (
            {"classes": ["a"], "ignored": [3]},
            ".ignored",
            "'ignore'",
        ),
        ("[1, 2]", "", "mapping"),
        ("a: [", "", "YAML"),
    ],
)
def test_a_wrong_description_names_the_key(
    description: Mapping[str, object] | str, key: str, fact: str, tmp_path: Path
) -> None:
    make_folder(tmp_path, description, {"train/x": 0})
    with refuses(f"{tmp_path}/dataset.yaml{key}", DataError, fact):
        build_dataset("folder", split="train", root=tmp_path)


def test_folder_without_description_or_with_two_of_a_name(tmp_path: Path) -> None:
    make_folder(tmp_path, {"classes": ["a"]}, {"train/x": 0})
    (tmp_path / "images/train/x.jpg").write_bytes(b"")
    with refuses(
        f"{tmp_path}, split 'train'", DataError, "1 name", "images/train/x.jpg and images/train/x.png"
    ):
        build_dataset("folder", split="train", root=tmp_path)
    data = open_set("folder", "train", tmp_path, subset=True)
    assert ([data.name(i) for i in range(len(data))], len(data.duplicates)) == (["images/train/x.jpg"], 1)
    (tmp_path / "dataset.yaml").unlink()
    with refuses(tmp_path / "dataset.yaml", DataError, "file"):
        build_dataset("folder", split="train", root=tmp_path)
