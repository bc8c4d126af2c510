"""Images of more than 8 bits of one data set are scaled alike, by a declared or measured range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset, scale
from cirkd_ray.data.facts import look
from cirkd_ray.data.identity import DataIdentity, identity
from cirkd_ray.data.loader import eval_loader
from cirkd_ray.data_tools.check import check
from cirkd_ray.data_tools.prepare import Encoding, prepare
from cirkd_ray.errors import DataError
from cirkd_ray.evaluate.predict import Predictor
from cirkd_ray.models import build_model
from cirkd_ray.weights import save_model
from tests.unit.test_data_findings import RGB, both, found, halves, make, run_on, write

TWO = "classes: [a, b]\n"


def wide(top: int) -> np.ndarray:
    """16-bit values of which the highest is `top`."""
    image = np.rint(RGB * (top / 255)).astype(np.uint16)
    image[0, 0, 0] = top
    return image


def scaled(image: np.ndarray, top: int) -> np.ndarray:
    return np.rint(image * (255 / top)).astype(np.uint8)


def several(root: Path, tops: list[int], rest: int = 4095) -> Path:
    """A set whose training images have these highest values, one after the other."""
    make(root, TWO, both(halves(0, 1), count=len(tops)), image=wide(rest))
    for number, top in enumerate(tops):
        write(root / f"images/train/{number}.png", wide(top))
    return root


def test_a_dark_image_is_scaled_as_a_bright_one_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = several(tmp_path / "raw", [4095, 900, 300, 4095])
    data = build_dataset("folder", split="train", root=root)
    for number, top in enumerate([4095, 900, 300, 4095]):
        np.testing.assert_array_equal(data.load(number).image, scaled(wide(top), 4095))
    assert main(["data", "check", "folder", str(root)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("`range: [") == 2  # once a split
    assert shown.count("`range: [0, 4095]` in dataset.yaml") == 2
    notes = run_on(root)
    assert [note.split(": ")[:2] for note in notes] == [["note", "data, train"], ["note", "data, val"]]
    assert "4 of the 4 images have values of more than 8 bits, scaled from 0..4095, as measured" in notes[0]
    batch = next(iter(eval_loader(data)))
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), scaled(wide(4095), 4095))
    out = str(tmp_path / "out")
    assert main(["data", "prepare", "folder", str(root), out, "--lossless"]) == 0
    stored = build_dataset("folder", split="train", root=out)
    np.testing.assert_array_equal(stored.load(1).image, scaled(wide(900), 4095))
    assert stored.span == (0, 4095)
    measured = identity({"train": data})
    (root / "dataset.yaml").write_text(TWO + "range: [0, 4095]\n")
    declared = build_dataset("folder", split="train", root=root)
    assert measured.changed_meaning(identity({"train": declared})) == []
    np.testing.assert_array_equal(declared.load(1).image, data.load(1).image)
    assert main(["data", "check", "folder", str(root)]) == 0
    assert run_on(root) == ()
    (root / "dataset.yaml").write_text(TWO + "range: [0, 2000]\n")
    changed = build_dataset("folder", split="train", root=root)
    assert "beyond the range 0..2000, which are clipped" in found(changed)["pixels changed"]
    assert "0..2000, was 0..4095" in measured.changed_meaning(identity({"train": changed}))[0]
    with pytest.raises(DataError, match="another range"):
        prepare({"train": changed}, "folder", {}, out, Encoding(None))


def test_splits_of_other_brightness_have_one_range(tmp_path: Path) -> None:
    root = make(tmp_path, TWO, both(halves(0, 1)), image=wide(4095))
    for number in range(2):
        write(root / f"images/val/{number}.png", wide(900))
    write(root / "images/extra/0.png", wide(16383))
    sets = [build_dataset("folder", split=split, root=root) for split in ("train", "val")]
    assert [data.span for data in sets] == [(0, 16383)] * 2
    np.testing.assert_array_equal(sets[1].load(0).image, scaled(wide(900), 16383))


def test_images_of_other_depths_are_one_finding_with_the_line_to_write(tmp_path: Path) -> None:
    root = several(tmp_path, [4095] * 5 + [65535])
    report = check(build_dataset("folder", split="train", root=root))
    assert not report.sound
    (finding,) = report.findings
    assert finding.message.startswith(
        "6 of the 6 images have values of more than 8 bits, scaled from 0..65535, as measured"
    )
    assert "5 have none above 4095 (first images/train/0.png)" in finding.message
    assert "`range: [0, 65535]` in dataset.yaml" in finding.message
    assert any(note.startswith("warning: data, train") and "none above 4095" in note for note in run_on(root))
    (root / "dataset.yaml").write_text(TWO + "range: [0, 65535]\n")
    assert check(build_dataset("folder", split="train", root=root)).sound


@pytest.mark.parametrize("others", ["16 bits", "8 bits"])
def test_images_that_the_measured_range_leaves_out_are_one_finding(
    others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "MEASURED", 4)
    monkeypatch.setattr(scale, "SEEN", 2)
    root = make(tmp_path, TWO, both(halves(0, 1), count=9), image=RGB if others == "8 bits" else wide(4095))
    for number, top in ((2, 20000), (5, 40000)):
        write(root / f"images/train/{number}.png", wide(top))
    data = build_dataset("folder", split="train", root=root)
    with pytest.raises(DataError, match=r"train/2\.png: .*`range: \[0, 65535\]` in dataset\.yaml"):
        data.load(2)
    report = check(data)
    (finding,) = (item for item in report.findings if not item.note)
    assert "2 more have values up to 40000 and are not read (first images/train/2.png)" in finding.message
    assert "write `range: [0, 65535]` in dataset.yaml" in finding.message
    assert finding.message.startswith("the 7 looked at have 8 bits; 2 more" if others == "8 bits" else "7 of")
    assert report.images == 7
    (root / "dataset.yaml").write_text(TWO + "range: [0, 65535]\n")
    assert check(build_dataset("folder", split="train", root=root)).sound


def test_what_no_range_is_usual_for_is_told_once_with_the_range_of_the_set(tmp_path: Path) -> None:
    root = make(tmp_path, TWO, both(halves(0, 1)), image=RGB.astype(np.float32)[..., 0], image_suffix=".tif")
    assert build_dataset("folder", split="train", root=root).span == (0, 255)
    write(root / "images/train/1.tif", RGB.astype(np.float32)[..., 0] * 20)
    write(root / "images/val/1.tif", RGB.astype(np.float32)[..., 0] - 3)
    low, high = int(RGB[..., 0].min()) - 3, int(RGB[..., 0].max()) * 20
    expected = rf"{root}: its images hold 32-bit floating-point values .*`range: \[{low}, {high}\]` in"
    for split in ("train", "val"):
        with pytest.raises(DataError, match=expected):
            build_dataset("folder", split=split, root=root)
    assert main(["data", "check", "folder", str(root)]) == 2
    (root / "dataset.yaml").write_text(TWO + f"range: [{low}, {high}]\n")
    assert main(["data", "check", "folder", str(root)]) == 0


def test_measuring_is_bounded_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    bounds = scale.bounds
    monkeypatch.setattr(scale, "bounds", lambda data, where: read.append(where) or bounds(data, where))
    root = make(tmp_path / "a", TWO, both(halves(0, 1), count=40), image=wide(4095))
    for split in ("train", "val", "train"):
        build_dataset("folder", split=split, root=root)
    assert len(read) == len(set(read)) == 32
    write(root / "images/train/0.png", wide(1000))
    build_dataset("folder", split="train", root=root)
    assert len(read) == 64  # other files
    monkeypatch.setattr(scale, "PIXELS", 10 * RGB[..., 0].size)
    root = make(tmp_path / "b", TWO, both(halves(0, 1), count=40), image=wide(4095))
    build_dataset("folder", split="train", root=root)
    assert len(read) == 74
    root = make(tmp_path / "c", TWO, both(halves(0, 1), count=40), image=RGB, image_suffix=".jpg")
    assert build_dataset("folder", split="train", root=root).span is None
    assert len(read) == 74


def test_what_was_measured_before_is_held_against_now(tmp_path: Path) -> None:
    root = several(tmp_path, [4095] * 3)
    before = identity({"train": build_dataset("folder", split="train", root=root)})
    earlier = DataIdentity(before.root, before.classes, {"0": "a", "1": "b", "255": "ignored"}, before.splits)
    assert earlier.changed_meaning(before) == []  # of a version that scaled each image by itself
    write(root / "images/test/0.png", wide(65535))
    now = identity({"train": build_dataset("folder", split="train", root=root)})
    (told,) = before.changed_meaning(now)
    assert told == (
        "range of image values is 0..65535, measured, was 0..4095, measured "
        "(write `range: [0, 4095]` to keep that)"
    )
    (root / "dataset.yaml").write_text(TWO + "range: [0, 4095]\n")
    kept = identity({"train": build_dataset("folder", split="train", root=root)})
    assert before.changed_meaning(kept) == []


def test_predictions_of_files_take_one_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = several(tmp_path / "raw", [4095, 900])
    data = build_dataset("folder", split="train", root=root)
    model = build_model("deeplabv3_mobilenetv2", num_classes=2)
    seen: list[np.ndarray] = []

    def predicted(folder: str, *options: str) -> list[np.ndarray]:
        seen.clear()
        line = ["predict", str(tmp_path / folder), str(root / "images/train"), "--device", "cpu"]
        assert main([*line, "--out", str(tmp_path / "out"), "--write", "ids", *options]) == 0
        return [*seen]

    save_model(model, tmp_path / "declared", data.classes, range=(0, 16383))
    save_model(model, tmp_path / "none", data.classes)
    with pytest.MonkeyPatch.context() as patch:
        plain = Predictor.labels
        patch.setattr(Predictor, "labels", lambda self, x, name: seen.append(x) or plain(self, x))
        for folder, options, top in (
            ("none", (), 4095),
            ("declared", (), 16383),
            ("none", ("--range", "0", "65535"), 65535),
        ):
            bright, dark = predicted(folder, *options)
            np.testing.assert_array_equal(bright, scaled(wide(4095), top))
            np.testing.assert_array_equal(dark, scaled(wide(900), top))
            assert ("scaled from 0..4095, as measured on these files" in capsys.readouterr().err) == (
                top == 4095
            )
    line = ["eval", str(tmp_path / "declared"), "--data", "folder", "--root", str(root), "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    told = "images are scaled from 0..4095, those that the network was trained on from 0..16383"
    assert told in capsys.readouterr().err


def test_a_look_measures_no_more_than_it_reads(tmp_path: Path) -> None:
    root = several(tmp_path, [4095] * 6)
    (sample,) = look(build_dataset("folder", split="train", root=root), training=True)
    assert sample.startswith("note: data, train: 4 of the 4 looked at have values of more than 8 bits")


def test_splits_of_an_official_set_with_other_ranges_are_refused(tmp_path: Path) -> None:
    for split, top in (("train", 4095), ("val", 65535)):
        for number in range(2):
            write(tmp_path / f"{split}/{number}.png", wide(top))
            write(tmp_path / f"{split}annot/{number}.png", halves(0, 1))
    with pytest.raises(DataError, match=r"^data: .*0\.\.4095 in 'train' and from 0\.\.65535 in 'val'"):
        run_on(tmp_path, "camvid")


def test_a_wrong_range_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path, "classes: [a, b]\nrange: [5, 5]\n", both(halves(0, 1)))
    with pytest.raises(DataError, match=r"dataset\.yaml: range: 5 is not below 5"):
        build_dataset("folder", split="train", root=root)
