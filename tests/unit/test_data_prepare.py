"""The ready-to-train form: the same samples and crops, made in parts, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cirkd_ray.data import SegmentationDataset, build_dataset
from cirkd_ray.data.base import Sample
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.data_tools import prepare as prepare_module
from cirkd_ray.data_tools.prepare import Encoding, prepare, verify_prepared
from cirkd_ray.errors import DataError
from cirkd_ray.types import ClassSet
from tests.errors import refuses


def soft_image(height: int, width: int, seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def small_set(tmp_path: Path) -> Path:
    """A `folder` data set: three PNG pairs of odd sizes in train, a JPEG pair in val."""
    for name, (height, width) in {
        "train/ä": (70, 130),
        "train/b b": (64, 64),
        "train/c": (33, 97),
        "val/d": (40, 50),
    }.items():
        extension = ".jpg" if name.startswith("val") else ".png"
        image = soft_image(height, width, len(name))
        label = np.random.default_rng(7).integers(0, 3, (height, width), dtype=np.uint8)
        label[label == 2] = 255
        for path, content in ((f"images/{name}{extension}", image), (f"labels/{name}.png", label)):
            (tmp_path / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / path).write_bytes(cv2.imencode(Path(path).suffix, content)[1].tobytes())
    (tmp_path / "raw" / "dataset.yaml").write_text("classes: [x, y]\n")
    return tmp_path / "raw"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


def convert(
    root: Path, target: Path | str, splits: tuple[str, ...] = ("train", "val"), **options: object
) -> None:
    sets = {split: build_dataset("folder", split=split, root=root) for split in splits}
    prepare(sets, "folder", {"subset": False}, str(target), **options)  # type: ignore[arg-type]


def test_lossless_tiles_hold_the_same_samples(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(quality=None, tile=32))
    for split in ("train", "val"):
        old = build_dataset("folder", split=split, root=root)
        new = build_dataset("folder", split=split, root=tmp_path / "out")
        assert isinstance(new, PreparedDataset)
        assert new.classes == old.classes
        assert [new.name(i) for i in range(len(new))] == [old.name(i) for i in range(len(old))]
        for i in range(len(old)):
            verify_prepared(new, i)
            np.testing.assert_array_equal(new.load(i).image, old.load(i).image)
            np.testing.assert_array_equal(new.load(i).label, old.load(i).label)


def test_crops_equal_those_of_the_whole(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(quality=None, tile=32))
    transform = TrainTransform(crop=(48, 40))
    old, new = (build_dataset("folder", split="train", root=r) for r in (root, tmp_path / "out"))
    for n in range(40):
        expected = transform(old.open(n % 3), np.random.default_rng(n))
        got = transform(new.open(n % 3), np.random.default_rng(n))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_the_needed_tiles_are_decoded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(quality=None, tile=32))
    decoded: list[int] = []
    from cirkd_ray.data import tiles

    whole = tiles.decode_image
    monkeypatch.setattr(tiles, "decode_image", lambda d, w: decoded.append(1) or whole(d, w))
    sample = build_dataset("folder", split="train", root=tmp_path / "out").open(2)
    sample.image_window(33, 65, 60, 90)
    assert len(decoded) == 1


def test_jpeg_tiles_are_close_and_labels_exact(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(quality=95, tile=32))
    old, new = (build_dataset("folder", split="train", root=r) for r in (root, tmp_path / "out"))
    for i in range(3):
        assert cv2.PSNR(new.load(i).image, old.load(i).image) > 34
        np.testing.assert_array_equal(new.load(i).label, old.load(i).label)


def test_small_jpeg_files_are_kept_as_they_are(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out")
    old, new = (build_dataset("folder", split="val", root=r) for r in (root, tmp_path / "out"))
    np.testing.assert_array_equal(new.load(0).image, old.load(0).image)
    kept = (tmp_path / "out" / "val" / "000000.safetensors").read_bytes()
    assert (root / "images/val/d.jpg").read_bytes() in kept


def test_large_samples_are_limited(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(max_size=65, tile=32))
    data = build_dataset("folder", split="train", root=tmp_path / "out")
    assert [data.load(i).size for i in range(3)] == [(64, 64), (22, 65), (35, 65)]
    assert set(np.unique(data.load(0).label)) <= {0, 1, 255}


def test_an_interrupted_preparation_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_PART", 2)
    target, made = tmp_path / "out", []
    whole = prepare_module.encode_sample

    def counted(name: str, *rest: object) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return whole(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "encode_sample", counted)
    with pytest.raises(KeyboardInterrupt):
        convert(root, target)
    assert not (target / "manifest.json").exists()
    with pytest.raises(DataError):
        build_dataset("folder", split="train", root=target)
    monkeypatch.setattr(prepare_module, "encode_sample", lambda *a: made.append(a[0]) or whole(*a))
    steps: list[int] = []
    convert(root, target, progress=steps.append)
    assert made == ["images/train/b b.png", "images/train/c.png", "images/train/ä.png", "images/val/d.jpg"]
    assert steps == [2, 1, 1]
    assert len(build_dataset("folder", split="train", root=target)) == 3
    convert(root, target)
    assert len(made) == 4


def test_a_split_can_be_added_later(root: Path, tmp_path: Path) -> None:
    convert(root, tmp_path / "out", splits=("train",))
    with refuses(tmp_path / "out", DataError, "'val'", "train"):
        build_dataset("folder", split="val", root=tmp_path / "out")
    convert(root, tmp_path / "out", splits=("val",))
    assert [len(build_dataset("folder", split=s, root=tmp_path / "out")) for s in ("train", "val")] == [3, 1]


def test_a_bad_sample_stops_or_is_listed(root: Path, tmp_path: Path) -> None:
    (root / "images/train/c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with refuses(root / "images/train/c.png", DataError, "`cirkd data check`", "--skip-bad"):
        convert(root, tmp_path / "out")
    convert(root, tmp_path / "out", skip_bad=True)
    data = build_dataset("folder", split="train", root=tmp_path / "out")
    assert [data.name(i) for i in range(len(data))] == ["images/train/b b.png", "images/train/ä.png"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["skipped"]["train"]) == ["images/train/c.png"]


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    convert(root, target)
    with refuses(target, DataError, "options"):
        convert(root, target, encoding=Encoding(quality=80))
    with refuses(target, DataError, "'folder'", "'camvid'"):
        build_dataset("camvid", split="train", root=target)
    with refuses(target, DataError, "subset=False", True):
        build_dataset("folder", split="train", root=target, subset=True)
    with refuses(root, DataError, "empty"):
        convert(root, root)
    manifest = (target / "manifest.json").read_text()
    (target / "manifest.json").write_text(
        manifest.replace('"format":2', '"format":9').replace('"format": 2', '"format": 9')
    )
    with refuses(target / "manifest.json", DataError, 9, 2):
        build_dataset("folder", split="train", root=target)
    (target / "manifest.json").write_text(manifest[:40])
    with refuses(target / "manifest.json", DataError, "damaged"):
        build_dataset("folder", split="train", root=target)


@pytest.mark.parametrize("damage", ["cut", "zero", "labels", "gone"])
def test_damaged_files_are_named(root: Path, tmp_path: Path, damage: str) -> None:
    convert(root, tmp_path / "out", encoding=Encoding(tile=32))
    data = build_dataset("folder", split="train", root=tmp_path / "out")
    assert isinstance(data, PreparedDataset)
    path = tmp_path / "out" / "train" / "000000.safetensors"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": content[: len(content) // 2], "zero": b"", "labels": content[:-40] + bytes(40)}[damage]
        )
    with refuses(path, DataError):
        data.load(0)
    with refuses(path, DataError):
        verify_prepared(data, 0)


def test_a_read_only_target_is_an_error_of_the_user(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with refuses(tmp_path / "file" / "out", DataError, "made"):
        convert(root, tmp_path / "file" / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cirkd_ray.data.storage.write_bytes", full)
    with refuses(tmp_path / "out" / "preparation.json", DataError, "No space left on device"):
        convert(root, tmp_path / "out")


def test_a_drawn_set_can_be_prepared_too(tmp_path: Path) -> None:
    """Any data set: here one that has no files, and more samples than a part."""

    class Squares(SegmentationDataset):
        classes = ClassSet(("a", "b"), ((0, 0, 0), (9, 9, 9)))

        def __len__(self) -> int:
            return 130

        def name(self, index: int) -> str:
            return f"square{index}"

        def load(self, index: int) -> Sample:
            return Sample(
                np.full((8, 8, 3), index, np.uint8), np.full((8, 8), index % 2, np.uint8), self.name(index)
            )

    prepare({"train": Squares()}, "folder", {}, str(tmp_path / "out"), workers=4)
    data = build_dataset("folder", split="train", root=tmp_path / "out")
    assert len(data) == 130
    assert data.load(129).image.mean() == pytest.approx(129, abs=1)
    assert data.load(129).label[0, 0] == 1


def test_a_split_without_labels_stays_one(tmp_path: Path) -> None:
    from cirkd_ray.data.files import packaged_list

    stem = packaged_list("cityscapes", "test")[0]
    path = tmp_path / "raw" / f"leftImg8bit/test/{stem}_leftImg8bit.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(cv2.imencode(".png", soft_image(20, 40, 0))[1].tobytes())
    raw = build_dataset("cityscapes", split="test", root=tmp_path / "raw", subset=True)
    prepare({"test": raw}, "cityscapes", {}, str(tmp_path / "out"))
    data = build_dataset("cityscapes", split="test", root=tmp_path / "out")
    assert isinstance(data, PreparedDataset)
    assert not data.has_labels
    assert (data.load(0).label == 255).all()
