"""Masks in colours: RGB or palette files, whose colours say which class is meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset, facts
from cirkd_ray.data.facts import look
from cirkd_ray.data.files import metadata
from cirkd_ray.data.label_map import ColourMap
from cirkd_ray.data_tools.check import check
from cirkd_ray.errors import DataError
from tests.unit.test_data_findings import RGB, both, found, halves, indexed, make, run_on, write

PALETTE = {"classes": ["a", "b"], "palette": [[10, 20, 30], [200, 0, 5]], "ignore": [255, [0, 0, 0]]}


def test_masks_of_the_palettes_colours_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((12, 16, 3), np.uint8)
    mask[:, 4:10], mask[:, 10:] = PALETTE["palette"]
    expected = np.full((12, 16), 255, np.uint8)
    expected[:, 4:10], expected[:, 10:] = 0, 1
    root = make(tmp_path / "raw", PALETTE, both(mask))
    data = build_dataset("folder", split="train", root=root)
    np.testing.assert_array_equal(data.load(0).label, expected)
    assert main(["data", "check", "folder", str(root)]) == 0
    assert main(["data", "prepare", "folder", str(root), str(tmp_path / "out")]) == 0
    stored = build_dataset("folder", split="train", root=tmp_path / "out")
    np.testing.assert_array_equal(stored.load(0).label, expected)
    mask[3, 3] = (10, 20, 31)
    write(root / "labels/train/1.png", mask)
    capsys.readouterr()
    assert main(["data", "check", "folder", str(root), "--split", "train"]) == 1
    assert "colours of no class [10, 20, 31] (1 pixels)" in capsys.readouterr().out.replace("\n", "")
    (root / "dataset.yaml").write_text("classes: [a, b]\n")
    with pytest.raises(DataError, match=r"0\.png: holds RGB values; write `palette: "):
        build_dataset("folder", split="train", root=root).load(0)


def test_a_palettes_colours_decide_where_they_are_those_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = {"classes": ["bg", "road", "sky"], "palette": [[0, 0, 0], [128, 64, 128], [70, 130, 180]]}
    truth = np.random.default_rng(5).integers(0, 3, (12, 16), dtype=np.uint8)
    root = make(tmp_path, declared, both(truth))
    order = np.array([2, 0, 1], np.uint8)  # an editor's own order of the colours
    colours = [declared["palette"][k] for k in np.argsort(order)]
    label = root / "labels/train/0.png"
    for path in (label, label.with_suffix(".tif")):
        label.unlink(missing_ok=True)
        indexed(path, order[truth], colours)
        data = build_dataset("folder", split="train", root=root)
        np.testing.assert_array_equal(data.load(0).label, truth)
        path.unlink()
    indexed(label, order[truth], colours)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # large labels are sound, whatever Pillow says of them
        np.testing.assert_array_equal(build_dataset("folder", split="train", root=root).load(0).label, truth)
    indexed(label, truth, [[1, 1, 1], [2, 2, 2], [3, 3, 3]])  # colours for display alone
    np.testing.assert_array_equal(build_dataset("folder", split="train", root=root).load(0).label, truth)
    indexed(label, order[truth], [colours[0], [9, 9, 9], colours[2]])
    with pytest.raises(DataError, match=r"0\.png: index 0 has the colour of another class.* of 1 are"):
        build_dataset("folder", split="train", root=root).load(0)


def test_three_ignored_values_that_are_one_colour_are_told(tmp_path: Path) -> None:
    root = make(tmp_path, {**PALETTE, "ignore": [0, 1, 2]}, both(halves(0, 1)))
    with pytest.raises(DataError, match=r"write e\.g\. `ignore: \[\[0, 1, 2\]\]`"):
        build_dataset("folder", split="train", root=root)


def test_a_colour_stands_for_one_class(tmp_path: Path) -> None:
    root = make(tmp_path, {**PALETTE, "ignore": [[10, 20, 30]]}, both(halves(0, 1)))
    with pytest.raises(DataError, match=r"dataset\.yaml: palette: a colour stands for two classes"):
        build_dataset("folder", split="train", root=root)


def camvid_of_colours(root: Path, suffix: str) -> np.ndarray:
    """Two images a split with masks of the 32 colours, a column each; returns the classes of the columns."""
    rows, names = metadata("camvid")["original"], [row[0] for row in metadata("camvid")["classes"]]
    mask = np.array([row[1:4] for row in rows], np.uint8)[None].repeat(8, 0)
    for split in ("train", "val"):
        for n in range(2):
            write(root / f"{split}/0001TP_{n}.png", RGB[:8].repeat(2, 1))
            write(root / f"{split}annot/0001TP_{n}{suffix}.png", mask)
    return np.array([names.index(row[4]) if row[4] else 255 for row in rows], np.uint8)


def test_camvids_32_colours_are_told_and_become_11_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = camvid_of_colours(tmp_path / "raw", "_L")
    assert len(columns) == 32
    assert sorted(set(columns.tolist())) == [*range(11), 255]
    assert main(["data", "check", "camvid", str(tmp_path / "raw"), "--split", "train"]) == 2
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 2
    for part in (
        "trainannot holds 0001TP_0_L.png",
        "32 colours",
        "form=original",
        "cirkd data prepare camvid",
    ):
        assert part in told
    out = str(tmp_path / "out")
    assert main(["data", "prepare", "camvid", str(tmp_path / "raw"), out, "--set", "form=original"]) == 0
    for data in (
        build_dataset("camvid", split="val", root=out),
        build_dataset("camvid", split="val", root=tmp_path / "raw", form="original"),
    ):
        assert len(data) == 2
        np.testing.assert_array_equal(data.load(1).label, columns[None].repeat(8, 0))


def test_camvids_colours_without_the_suffix_are_told_and_read(tmp_path: Path) -> None:
    columns = camvid_of_colours(tmp_path, "")
    with pytest.raises(DataError, match=r"0001TP_0\.png: holds RGB values; .*form=original"):
        build_dataset("camvid", split="train", root=tmp_path).load(0)
    data = build_dataset("camvid", split="train", root=tmp_path, form="original")
    np.testing.assert_array_equal(data.load(0).label, columns[None].repeat(8, 0))


DECLARED = {"classes": ["bg", "road", "sky"], "palette": [[0, 0, 0], [128, 64, 128], [70, 130, 180]]}
THREE = {"classes": ["bg", "road", "sky"]}
LINE = "`palette: [[0, 0, 0], [128, 64, 128], [70, 130, 180]]`"


def by_index(root: Path, description: object, count: int = 6, **other: list[list[int]]) -> np.ndarray:
    """A set of palette files with the colours of DECLARED, but for the named samples; returns the labels."""
    truth = np.random.default_rng(5).integers(0, 3, (12, 16), dtype=np.uint8)
    make(root, description, both(truth, count=count))
    for path in root.glob("labels/*/*.png"):
        named = other if path.parent.name == "train" else {}
        indexed(path, truth, named.get(f"n{path.stem}", DECLARED["palette"]))
    return truth


def test_palettes_that_differ_are_a_finding_and_a_warning_with_the_line_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_index(tmp_path / "same", THREE)
    data = build_dataset("folder", split="train", root=tmp_path / "same")
    assert found(data) == {}
    assert run_on(tmp_path / "same") == ()
    swapped = [DECLARED["palette"][k] for k in (0, 2, 1)]
    root = tmp_path / "other"
    by_index(root, THREE, n3=swapped)
    report = check(build_dataset("folder", split="train", root=root))
    assert not report.sound
    (finding,) = report.findings
    for text in (
        "index 1 is [128, 64, 128] for images/train/0.png and [70, 130, 180] for images/train/3.png",
        "and so on for 1 more, and are read by index",
        f"{LINE} in dataset.yaml",
        "gray class indices",
    ):
        assert text in finding.message
    assert main(["data", "prepare", "folder", str(root), str(tmp_path / "out")]) == 0
    assert "data, train: label files have palettes that differ" in " ".join(capsys.readouterr().err.split())
    (warning,) = run_on(root)
    assert warning.startswith("warning: data, train: label files have palettes that differ: index 1 is")
    assert LINE in warning
    (root / "dataset.yaml").write_text(f"classes: [bg, road, sky]\n{LINE[1:-1]}\n")
    data = build_dataset("folder", split="train", root=root)
    assert found(data) == {}
    np.testing.assert_array_equal(data.load(3).label, np.array([0, 2, 1])[data.load(0).label])


def test_one_file_among_many_with_another_palette_is_met_by_the_start(tmp_path: Path) -> None:
    by_index(tmp_path, THREE, count=40, n17=[[9, 9, 9], [128, 64, 128], [70, 130, 180]])
    (note,) = look(build_dataset("folder", split="train", root=tmp_path), training=True)
    assert "[9, 9, 9] for images/train/17.png" in note


def test_splits_whose_palettes_differ_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = by_index(tmp_path, THREE)
    for path in tmp_path.glob("labels/val/*.png"):
        indexed(path, truth, [DECLARED["palette"][k] for k in (1, 0, 2)])
    (warning,) = run_on(tmp_path)
    assert "index 0 is [0, 0, 0] for images/train/0.png and [128, 64, 128] for images/val/0.png" in warning
    assert warning.startswith("warning: data, val")
    assert main(["data", "check", "folder", str(tmp_path)]) == 1
    assert " ".join(capsys.readouterr().out.split()).count("index 0 is") == 1


def test_entries_of_a_palette_that_are_not_used_do_not_differ(tmp_path: Path) -> None:
    by_index(tmp_path, THREE, n3=[*DECLARED["palette"], [1, 1, 1]], n4=[*DECLARED["palette"], [0, 0, 0]])
    assert found(build_dataset("folder", split="train", root=tmp_path)) == {}
    assert run_on(tmp_path) == ()


def test_classes_without_a_colour_of_their_own_get_no_made_up_line(tmp_path: Path) -> None:
    by_index(tmp_path, THREE, **{f"n{k}": [[0, 0, 0]] * 3 for k in range(4)})
    text = found(build_dataset("folder", split="train", root=tmp_path))["palettes differ"]
    assert "`palette: [[R, G, B], ...]` in dataset.yaml, the colour of each class" in text


def test_declared_colours_that_no_file_has_and_palettes_that_differ(tmp_path: Path) -> None:
    other = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    by_index(tmp_path, DECLARED, n3=other, n4=[other[k] for k in (2, 0, 1)])
    text = found(build_dataset("folder", split="train", root=tmp_path))["palettes differ"]
    assert "index 0 is [250, 0, 0] for images/train/3.png" in text
    assert "none of `palette`" in text


def test_palette_colours_near_those_of_other_classes_are_refused(tmp_path: Path) -> None:
    near = [[0, 0, 2], [70, 132, 180], [128, 64, 127]]  # sky and road have changed places
    by_index(tmp_path / "moved", DECLARED, n3=near)
    data = build_dataset("folder", split="train", root=tmp_path / "moved")
    with pytest.raises(DataError, match=r"3\.png: index 1 has .* \[70, 132, 180\], near \[70, 130, 180\]"):
        data.load(3)
    assert "index 1 has the colour" in found(data)["impossible label"]
    for name, colours in (
        ("in place", [near[k] for k in (0, 2, 1)]),
        ("ramp", [[2, 2, 2], [1, 1, 1], [0, 0, 1]]),  # of grays, for display alone
    ):
        by_index(tmp_path / name, DECLARED, n3=colours)
        data = build_dataset("folder", split="train", root=tmp_path / name)
        np.testing.assert_array_equal(data.load(3).label, data.load(0).label)


def test_colours_blended_by_jpeg_or_anti_aliasing_are_named_with_share_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.array(DECLARED["palette"], np.uint8)[halves(0, 1)]
    root = make(tmp_path, DECLARED, both(mask, count=6))
    blended = mask.copy()
    blended[:, 8] = (126, 66, 120)
    write(root / "labels/train/2.png", blended)
    told = (
        r"2\.png: colours of no class \[126, 66, 120\] \(12 pixels\) near \[128, 64, 128\] of 'road', "
        r"6\.2 % of all; .*anti-aliasing, and never as JPEG"
    )
    data = build_dataset("folder", split="train", root=root)
    with pytest.raises(DataError, match=told):
        data.load(2)
    assert main(["data", "check", "folder", str(root), "--split", "train"]) == 1
    assert "near [128, 64, 128] of 'road'" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(DataError, match=told):
        run_on(root)


def test_a_start_looks_at_masks_in_colours_even_where_all_classes_are_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.array(DECLARED["palette"], np.uint8)[np.arange(192).reshape(12, 16) % 3]
    root = make(tmp_path, DECLARED, both(mask, count=20))
    blended = mask.copy()
    blended[0, 0] = (9, 9, 9)
    write(root / "labels/train/11.png", blended)
    data = build_dataset("folder", split="train", root=root)
    with pytest.raises(DataError, match=r"train/11\.png: colours of no class \[9, 9, 9\] \(1 pixels\) near"):
        look(data, training=True)
    monkeypatch.setattr(facts, "COLOURED", 0)
    assert look(data, training=True) == ()


def test_transparency_of_a_palette_is_not_lost_where_colours_decide(tmp_path: Path) -> None:
    truth = by_index(tmp_path, DECLARED)
    label = tmp_path / "labels/train/0.png"
    indexed(label, truth, DECLARED["palette"], transparency=1)
    with pytest.raises(DataError, match=r"0\.png: has transparent pixels"):
        build_dataset("folder", split="train", root=tmp_path).load(0)
    opaque = bytes([255, 255, 255])
    for description, transparency in ((DECLARED, opaque), (THREE, 1)):  # indices hold nothing transparent
        (tmp_path / "dataset.yaml").write_text(json.dumps(description))
        indexed(label, truth, DECLARED["palette"], transparency=transparency)
        data = build_dataset("folder", split="train", root=tmp_path)
        np.testing.assert_array_equal(data.load(0).label, truth)


@pytest.mark.parametrize(
    ("colour", "told"),
    [
        ((255, 255, 255), "ignore: [[255, 255, 255]]"),  # declared nowhere
        ((30, 20, 10), "backwards"),
        ((12, 20, 30), "anti-aliasing"),
    ],
)
def test_what_may_be_wrong_with_a_colour_of_no_class_is_told(colour: tuple[int, int, int], told: str) -> None:
    known = ColourMap({(10, 20, 30): 0, (200, 100, 0): 1}, ("road", "sky"))
    mask = np.full((4, 4, 3), colour, np.uint8)
    with pytest.raises(DataError) as raised:
        known(mask, "m.png")
    assert told in str(raised.value)
