"""What a data set has wrong as a whole is told, by `cirkd data check` and at the start of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cirkd_ray.cli import main
from cirkd_ray.config import from_tree
from cirkd_ray.data import build_dataset, facts
from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.facts import look
from cirkd_ray.data.files import metadata, packaged_list
from cirkd_ray.data.loader import eval_loader
from cirkd_ray.data_tools.check import check
from cirkd_ray.data_tools.prepare import prepare
from cirkd_ray.errors import DataError
from cirkd_ray.train.dry_run import check_run
from tests.tinyrun import tiny_tree

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def write(path: Path, array: np.ndarray, **options: object) -> None:
    """A picture of RGB, RGBA or gray pixels, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.dtype == np.uint16 and array.ndim == 3:
        path.write_bytes(cv2.imencode(path.suffix, array[..., ::-1])[1].tobytes())
    else:
        Image.fromarray(array).save(path, **options)


def halves(left: int, right: int, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    label = np.full(shape, left, np.uint8)
    label[:, shape[1] // 2 :] = right
    return label


def make(
    root: Path,
    description: Mapping[str, object] | str,
    labels: Mapping[str, np.ndarray],
    image: np.ndarray = RGB,
    image_suffix: str = ".png",
    **options: object,
) -> Path:
    """A `folder` data set: name of the label's file below labels/ -> label; an image for each."""
    for name, label in labels.items():
        stem = name.rpartition(".")[0].removesuffix("_mask")
        write(root / "images" / f"{stem}{image_suffix}", image, **options)
        write(root / "labels" / name, label)
    text = description if isinstance(description, str) else json.dumps(description)
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    return root


def indexed(path: Path, indices: np.ndarray, colours: list[list[int]], **options: object) -> None:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    image.putdata(indices.ravel().tolist())
    image.save(path, **options)


def both(label: np.ndarray, count: int = 2, suffix: str = ".png") -> dict[str, np.ndarray]:
    return {f"{split}/{n}{suffix}": label for split in ("train", "val") for n in range(count)}


def found(data: SegmentationDataset, **options: object) -> dict[str, str]:
    """Kind -> message of all findings."""
    return {finding.kind: finding.message for finding in check(data, **options).findings}


def run_on(root: Path, name: str = "folder", **data: object) -> tuple[str, ...]:
    """What the start of a tiny run on the set says."""
    settings = {"name": name, "root": str(root), "crop": [32, 32], **data}
    tree = tiny_tree(train={"batch_size": 2})
    return check_run(from_tree({**tree, "data": settings}))


# A class that cannot occur


def test_masks_of_0_and_255_are_no_perfect_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "raw", "classes: [bg, fg]\n", both(halves(0, 255)))
    assert main(["data", "prepare", "folder", str(root), str(tmp_path / "out")]) == 0
    assert "warning: data: no label in all 2 images is of class 'fg'" in capsys.readouterr().err
    assert main(["data", "check", "folder", str(root)]) == 1
    shown = capsys.readouterr().out
    assert "no label in all 2 images is of class 'fg'" in shown
    assert "`ids: {0: bg, 255: fg}`, `ignore: []`" in shown
    assert "50 % of the pixels" in shown
    with pytest.raises(DataError, match=r"^data: no label .* class 'fg'.*`ids: \{0: bg, 255: fg\}`"):
        run_on(root)
    (root / "dataset.yaml").write_text("classes: [bg, fg]\nids: {0: bg, 255: fg}\nignore: []\n")
    assert main(["data", "check", "folder", str(root)]) == 0
    assert run_on(root) == ()


def test_findings_are_in_the_log_and_told_by_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"train/0.png": halves(0, 1), "val/0.png": halves(0, 255)}
    root = make(tmp_path / "d", "classes: [bg, fg, other]\n", labels)
    settings = {"name": "folder", "root": str(root), "crop": [32, 32]}
    steps = {"steps": 1, "batch_size": 2, "validate_every": 1, "checkpoint_every": 1}
    (tmp_path / "r.json").write_text(json.dumps({**tiny_tree(train=steps), "data": settings}))
    recipe = (tmp_path / "r.json").rename(tmp_path / "r.yaml")
    assert main(["train", str(recipe), "--local", "--out", str(tmp_path), "--name", "x"]) == 0
    shown, log = " ".join(capsys.readouterr().out.split()), (tmp_path / "x/log.txt").read_text()
    for text in ("data, train: no label in all 1 images is of class 'other'", "are of one class only, 'bg'"):
        assert text in shown
        assert text in log
    assert main(["eval", str(tmp_path / "x"), "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "data, val: the labels in all 1 images are of one class only, 'bg'" in told
    assert "50 % of the pixels in all 1 images are ignored" in told
    report = json.loads(next((tmp_path / "x/eval").glob("*/evaluation.json")).read_text())
    assert any("one class only" in warning for warning in report["warnings"])


def test_many_masks_of_0_and_255_are_refused_without_reading_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "LABELS", 5)
    root = make(tmp_path, "classes: [bg, fg]\n", both(halves(0, 255), count=12))
    with pytest.raises(DataError, match=r"^data: .*one class only, 'bg'"):
        run_on(root)


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ("classes: [bg, fg]\nignore: [1]\n", "`ids: {0: bg, 1: fg}`"),
        ("classes: [bg, fg]\nids: {0: bg}\n", "`ids: {0: bg, 255: fg}`"),
        ("classes: [bg, a, fg]\nids: {0: bg, 1: fg}\n", "'a' cannot occur"),
    ],
)
def test_a_class_without_a_label_value_is_refused(description: str, line: str, tmp_path: Path) -> None:
    make(tmp_path, description, both(halves(0, 1)))
    with pytest.raises(DataError, match=r"dataset\.yaml: classes: .* cannot occur") as error:
        build_dataset("folder", split="train", root=tmp_path)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_class_in_no_training_image_is_a_finding_and_a_warning(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b, c]\n", both(halves(0, 2)))
    train, val = (build_dataset("folder", split=split, root=root) for split in ("train", "val"))
    assert list(found(train)) == ["class never occurs"]
    assert "'b'" in found(train)["class never occurs"]
    assert found(val, training=False) == {}
    (note,) = run_on(root)
    assert note.startswith("warning: data, train: no label")
    assert "'b'" in note


def test_the_look_goes_on_until_it_meets_a_rare_class(tmp_path: Path) -> None:
    labels = {
        f"{split}/{n:02}.png": halves(0, 1 if n == 13 else 0) for split in ("train", "val") for n in range(20)
    }
    assert run_on(make(tmp_path, "classes: [a, b]\n", labels)) == ()


def test_the_allowed_share_of_ignored_pixels_is_a_setting(tmp_path: Path) -> None:
    label = np.full((12, 16), 255, np.uint8)
    label[:6, :8], label[:6, 8:] = 0, 1
    root = make(tmp_path, "classes: [a, b]\n", both(label))
    assert main(["data", "check", "folder", str(root)]) == 1
    assert main(["data", "check", "folder", str(root), "--most-ignored", "0.6"]) == 0
    assert all("50 % of the pixels" in note for note in run_on(root))
    assert len(run_on(root)) == 2


# Pixels changed while decoding


def test_a_fourth_band_is_dropped_and_said(tmp_path: Path) -> None:
    bands = np.dstack([RGB, RGB[..., :1] // 2])
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)), image=bands, image_suffix=".tif")
    data = build_dataset("folder", split="train", root=root)
    np.testing.assert_array_equal(data.load(0).image, RGB)
    assert "a fourth band" in found(data)["pixels changed"]
    assert "dataset.yaml" not in found(data)["pixels changed"]


# One file, two orientations


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_orientation_tags_are_a_finding_and_a_warning(tmp_path: Path) -> None:
    options = {"image_suffix": ".jpg", "exif": exif(6)}
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)), **options)
    data = build_dataset("folder", split="train", root=root)
    assert data.load(0).size == (12, 16)
    assert list(found(data)) == ["orientation"]
    assert "2 of the 2 images have an orientation tag" in run_on(root)[0]


def test_a_label_that_fits_the_turned_image_only_is_refused(tmp_path: Path) -> None:
    options = {"image_suffix": ".jpg", "exif": exif(6)}
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1, (16, 12))), **options)
    with pytest.raises(DataError, match=r"the label is 12x16 pixels, .*\n.*tag is never applied") as error:
        run_on(root)
    assert "cirkd data check folder" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


# Official labels in another numbering


def test_labels_of_coco_stuff_that_are_shifted_by_one_are_told(tmp_path: Path) -> None:
    root, never = tmp_path / "coco", metadata("coco_stuff_164k")["absent_ids"]
    for split in ("train", "val"):
        stems = packaged_list("coco_stuff_164k", split)[:2]
        for stem in stems:
            write(root / f"images/{split}2017/{stem}.jpg", RGB)
            write(root / f"annotations/{split}2017/{stem}.png", halves(10 + 1, 24 + 1))
    data = build_dataset("coco_stuff_164k", split="val", root=root, subset=True)
    assert "11 street sign, 25 hat" in found(data)["impossible class"]
    assert "shifted by one" in found(data)["impossible class"]
    notes = run_on(root, "coco_stuff_164k", subset=True)
    assert sum("11 street sign" in note for note in notes) == 2
    out = str(tmp_path / "out")
    prepare({"val": data}, "coco_stuff_164k", {"label_set": 182}, out)
    assert "impossible class" in found(build_dataset("coco_stuff_164k", split="val", root=out))
    rest = [k for k in range(182) if k not in never]
    for n, stem in enumerate(packaged_list("coco_stuff_164k", "val")[:2]):
        write(
            root / f"annotations/val2017/{stem}.png",
            np.array(rest, np.uint8)[n::2][None].repeat(12, 0)[:, :16],
        )
    assert "impossible class" not in found(data)


def test_sizes_and_counts_of_an_official_set_are_checked(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / f"train/{n}.png", RGB)
        write(tmp_path / f"trainannot/{n}.png", halves(0, 1))
    kinds = found(build_dataset("camvid", split="train", root=tmp_path))
    assert "480x360" in kinds["size"]
    assert "367" in kinds["count"]


def test_labels_in_another_order_are_told_by_a_class_that_should_be_common(tmp_path: Path) -> None:
    for n in range(4):
        write(tmp_path / f"train/{n}.png", RGB)
        write(tmp_path / f"trainannot/{n}.png", halves(4, 1))
    data = build_dataset("camvid", split="train", root=tmp_path)
    assert "'Road'" in found(data)["rare class"]
    for n in range(4):
        write(tmp_path / f"trainannot/{n}.png", halves(3, 1))
    assert "rare class" not in found(data)


# Pairing


def test_what_lies_there_instead_is_said(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)))
    (root / "labels").rename(root / "masks")
    with pytest.raises(
        DataError, match=r"labels/train: no such folder.*the root holds .*images, masks"
    ) as refused:
        build_dataset("folder", split="train", root=root)
    assert str(refused.value).endswith(
        "no setting gives `labels` another name: rename the folder, or link it (ln -s OTHER labels)"
    )
    (root / "masks").rename(root / "labels")
    with pytest.raises(
        DataError, match=r"images/training: no such folder.*\(images holds train, val\)"
    ) as refused:
        build_dataset("folder", split="training", root=root)
    assert "data.train_split and data.val_split" in str(refused.value)
    for path in list((root / "images/train").iterdir()):
        path.rename(path.with_name(f"photo-{path.name}"))
    expected = r"\nlabels/train/photo-0\.png is missing; labels/train holds 0\.png, 1\.png: the names"
    with pytest.raises(DataError, match=expected):
        build_dataset("folder", split="train", root=root)


def test_an_impossible_value_is_told_with_the_key_that_gives_it_a_class(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [bg, fg]\nignore: []\n", both(halves(0, 255)))
    with pytest.raises(DataError, match=r"impossible label values 255 .*`ids: \{VALUE: CLASS, \.\.\.\}`"):
        build_dataset("folder", split="train", root=root).load(0)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif"])
def test_labels_with_a_suffix_are_told_and_found(suffix: str, tmp_path: Path) -> None:
    labels = {f"train/{n}_mask.png": halves(0, 1) for n in range(2)}
    root = make(tmp_path, "classes: [a, b]\n", labels)
    for path in (root / "labels/train").iterdir():
        write(path.with_suffix(suffix), halves(0, 1))
        path.unlink() if suffix != ".png" else None
    expected = (
        rf"labels/train/0\.png is missing; labels/train holds 0_mask\{suffix}: set `label_suffix: _mask`"
    )
    for subset in (False, True):
        with pytest.raises(DataError, match=expected) as error:
            build_dataset("folder", split="train", root=root, subset=subset)
        assert len(str(error.value).splitlines()) == 2
    (root / "dataset.yaml").write_text("classes: [a, b]\nlabel_suffix: _mask\n")
    data = build_dataset("folder", split="train", root=root)
    np.testing.assert_array_equal(data.load(1).label, halves(0, 1))
    assert found(data) == {}


def test_lossy_labels_are_refused_with_the_reason(tmp_path: Path) -> None:
    labels = {f"train/{n}_mask.jpg": halves(0, 1) for n in range(2)}
    root = make(tmp_path, "classes: [a, b]\n", labels)
    with pytest.raises(DataError, match=r"holds 0_mask\.jpg: a lossy format changes label values"):
        build_dataset("folder", split="train", root=root)


def test_images_of_a_format_that_is_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1), count=3))
    for split in ("train", "val"):
        (root / f"images/{split}/1.png").rename(root / f"images/{split}/1.heic")
    with pytest.raises(DataError, match=r"a labelled image is not read: images/train/1\.heic \(a format"):
        run_on(root)
    assert main(["data", "check", "folder", str(root)]) == 1
    assert "images/val/1.heic (a format that is not read)" in capsys.readouterr().out.replace("\n", "")
    data = build_dataset("folder", split="train", root=root, subset=True)
    assert len(data) == 2
    assert data.missing == ["images/train/1.heic (a format that is not read)"]
    (root / "images/train/1.heic").rename(root / "images/train/1.json")  # no image at all
    assert len(build_dataset("folder", split="train", root=root)) == 2
    (root / "images/train/1.json").rename(root / "images/train/1.heic")
    (root / "train.txt").write_text("train/0\ntrain/1\n")
    with pytest.raises(DataError, match=r"images/train holds 1\.heic: a format that is not read; save"):
        build_dataset("folder", split="train", root=root)
    (root / "train.txt").unlink()
    for path in (root / "images/train").glob("*.png"):
        path.rename(path.with_suffix(".jp2"))
    expected = r"no images that are read \(images/train holds 0\.jp2, 1\.heic, 2\.jp2\); save"
    for subset in (False, True):
        with pytest.raises(DataError, match=expected):
            build_dataset("folder", split="train", root=root, subset=subset)


@pytest.mark.parametrize("suffix", [".ppm", ".gif"])
def test_images_of_less_common_formats_are_read(suffix: str, tmp_path: Path) -> None:
    gray = RGB[..., 0]
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)), image=gray, image_suffix=suffix)
    data = build_dataset("folder", split="train", root=root)
    np.testing.assert_array_equal(data.load(0).image, gray[..., None].repeat(3, 2))
    assert found(data) == {}


def test_a_transparent_colour_of_an_image_is_told(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)))
    for path in (root / "images/train").iterdir():
        indexed(path, halves(0, 1), [[1, 2, 3], [40, 50, 60]], transparency=1)
    data = build_dataset("folder", split="train", root=root)
    assert data.load(0).image[0, -1].tolist() == [40, 50, 60]
    assert "2 of the 2 images have a fourth band (transparency)" in found(data)["pixels changed"]
    assert "a fourth band (transparency)" in run_on(root)[0]


def test_two_labels_of_one_image_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)))
    write(root / "labels/train/0.tif", halves(1, 0))
    with pytest.raises(DataError, match=r"1 name comes twice: labels/train/0\.png and labels/train/0\.tif"):
        build_dataset("folder", split="train", root=root)


# The start of a run


def test_a_bad_sample_is_told_with_the_command_that_finds_all(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)))
    (root / "images/train/1.png").write_bytes(b"")
    data = build_dataset("folder", split="train", root=root)
    with pytest.raises(DataError, match=r"1\.png: the file is empty\n\(`cirkd data check folder "):
        look(data, training=True)
    with pytest.raises(DataError, match=r"1\.png: the file is empty\n\(`cirkd data check folder "):
        list(eval_loader(data))


def test_all_pairs_of_sizes_are_compared_before_a_run(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1), count=40))
    for n in (17, 18):
        write(root / f"labels/train/{n}.png", halves(0, 1, (12, 17)))
    with pytest.raises(DataError, match=r"labels/train/17\.png: the label is 17x12 .*\(2 pairs like this\)"):
        run_on(root)


def test_a_batch_larger_than_the_set_is_said(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\n", {**both(halves(0, 1), count=1)})
    (note,) = run_on(root)
    assert note.startswith("warning: train.batch_size: 2 is more than the 1 images of 'train'")


def test_a_contact_sheet_shows_a_bad_sample_as_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path, "classes: [a, b]\n", both(halves(0, 1)))
    write(root / "labels/val/1.png", halves(0, 77))
    out = tmp_path / "sheet.png"
    assert main(["data", "show", "folder", str(root), "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "bad: " in shown
    assert "impossible label values 77" in shown.replace("\n", " ")
    picture = np.asarray(Image.open(io.BytesIO(out.read_bytes())))
    assert ((picture == (205, 30, 45)).all(-1)).mean() > 0.1
