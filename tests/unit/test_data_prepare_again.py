"""A preparation that is run again: what changed is made again, what means something else is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.prepared import PreparedDataset, find_manifest
from cirkd_ray.data_tools import prepare as prepare_module
from cirkd_ray.data_tools.prepare import Encoding, verify_prepared
from cirkd_ray.errors import DataError, TransientError
from tests.errors import refuses, require_error
from tests.unit.test_data_prepare import convert, small_set, soft_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


def prepared(target: Path, split: str = "train") -> list[str]:
    data = build_dataset("folder", split=split, root=target)
    assert isinstance(data, PreparedDataset)
    for i in range(len(data)):
        verify_prepared(data, i)
        assert data.load(i).name == data.name(i)
    return [data.name(i).rsplit("/", 1)[1] for i in range(len(data))]


def test_a_mended_file_is_no_longer_skipped(root: Path, tmp_path: Path) -> None:
    path, target = root / "images/train/c.png", tmp_path / "out"
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    convert(root, target, skip_bad=True)
    assert prepared(target) == ["b b.png", "ä.png"]
    with refuses(path, DataError):
        convert(root, target)
    with refuses(target, DataError, "'train'", "val"):
        prepared(target)
    path.write_bytes(good)
    convert(root, target, splits=("train",))
    assert prepared(target) == ["b b.png", "c.png", "ä.png"]
    assert find_manifest(target).skipped == {}  # type: ignore[union-attr]


def test_names_that_are_not_utf8_are_skipped_until_they_are_mended(root: Path, tmp_path: Path) -> None:
    target, odd = tmp_path / "out", os.fsdecode(b"caf\xe9.png")
    for folder in ("images", "labels"):
        (root / folder / "train/c.png").rename(root / folder / "train" / odd)
    with refuses(r"images/train/caf\udce9.png", DataError, "UTF-8"):
        convert(root, target)
    for _ in range(2):
        convert(root, target, skip_bad=True)
        assert prepared(target) == ["b b.png", "ä.png"]
    manifest = find_manifest(target)
    assert manifest is not None
    assert list(manifest.skipped["train"]) == ["images/train/caf\\udce9.png"]
    for folder in ("images", "labels"):
        (root / folder / "train" / odd).rename(root / folder / "train/c.png")
    convert(root, target)
    assert prepared(target) == ["b b.png", "c.png", "ä.png"]


def test_what_the_network_hides_is_not_skipped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise TransientError("b b.png: Connection reset by peer (5 tries)")

    with monkeypatch.context() as patch:
        patch.setattr(FileDataset, "load", away)
        with pytest.raises(TransientError):
            convert(root, tmp_path / "out", skip_bad=True)
    convert(root, tmp_path / "out", skip_bad=True)
    assert len(prepared(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("description", "fact"),
    [
        ("classes: [y, x]", "other classes, or of the same in another order"),
        ("classes: [x, y]\nids: {0: y, 1: x}", "label values"),
        ("classes: [x, y]\nignore: [7, 255]", "label values"),
        ("classes: [x, y]\npalette: [[1, 2, 3], [4, 5, 6]]", "other colours"),
    ],
)
def test_labels_of_another_meaning_do_not_join_a_preparation(
    description: str, fact: str, root: Path, tmp_path: Path
) -> None:
    convert(root, tmp_path / "out", splits=("train",))
    (root / "dataset.yaml").write_text(description)
    with refuses(tmp_path / "out", DataError, fact):
        convert(root, tmp_path / "out")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_sample_whose_files_changed_is_made_again_alone(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, made = tmp_path / "out", []
    convert(root, target, encoding=Encoding(quality=None))
    changed = soft_image(64, 64, 1) if kind == "images" else np.ones((64, 64), np.uint8)
    path = root / kind / "train/b b.png"
    assert path.stat().st_size != path.write_bytes(cv2.imencode(".png", changed)[1].tobytes())
    whole = prepare_module.encode_sample
    monkeypatch.setattr(prepare_module, "encode_sample", lambda *a: made.append(a[0]) or whole(*a))
    convert(root, target, encoding=Encoding(quality=None))
    assert made == ["images/train/b b.png"]
    old, new = (build_dataset("folder", split="train", root=r).load(0) for r in (root, target))
    np.testing.assert_array_equal(new.image, old.image)
    np.testing.assert_array_equal(new.label, old.label)


def test_a_label_that_changed_within_its_bytes_is_made_again(root: Path, tmp_path: Path) -> None:
    target, path = tmp_path / "out", root / "labels/train/b b.png"
    options = [cv2.IMWRITE_PNG_COMPRESSION, 0]  # equal sizes whatever the labels
    for value in (0, 1):
        content = cv2.imencode(".png", np.full((64, 64), value, np.uint8), options)[1].tobytes()
        assert value == 0 or len(content) == path.stat().st_size
        path.write_bytes(content)
        convert(root, target)
    old, new = (build_dataset("folder", split="train", root=r).load(0) for r in (root, target))
    np.testing.assert_array_equal(new.label, old.label)


@pytest.mark.parametrize("gone", ["b b", "ä"])
def test_a_split_that_shrank_is_prepared_again(
    gone: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_PART", 1)
    target = tmp_path / "out"
    convert(root, target)
    saved = [root / f"images/train/{gone}.png", root / f"labels/train/{gone}.png"]
    content = [path.read_bytes() for path in saved]
    for path in saved:
        path.unlink()
    for _ in range(2):
        convert(root, target)
        assert prepared(target) == [
            name for name in ("b b.png", "c.png", "ä.png") if not name.startswith(gone)
        ]
    for path, data in zip(saved, content, strict=True):
        path.write_bytes(data)
    convert(root, target)
    assert prepared(target) == ["b b.png", "c.png", "ä.png"]


def test_a_split_that_is_being_changed_cannot_be_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    convert(root, target)
    (root / "labels/train/b b.png").unlink()
    (root / "images/train/b b.png").unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_sample", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(root, target)
    with refuses(target, DataError, "'train'", "val"):
        prepared(target)
    assert prepared(target, "val") == ["d.jpg"]
    convert(root, target)
    assert prepared(target) == ["c.png", "ä.png"]


@pytest.mark.parametrize("damage", ["cut", "gone", "dangling"])
def test_a_damaged_sample_is_made_again_alone(
    damage: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, made = tmp_path / "out", []
    convert(root, target)
    path = target / "train/000001.safetensors"
    whole = prepare_module.encode_sample
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
    if damage == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(prepare_module, "encode_sample", lambda *a: made.append(a[0]) or whole(*a))
    for _ in range(2):
        convert(root, target)
        assert made == ["images/train/c.png"]
        assert prepared(target) == ["b b.png", "c.png", "ä.png"]


def test_an_index_without_sizes_is_still_repaired_where_files_are_gone(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    convert(root, target)
    index = target / "train/index-000000.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps({k: r[k] for k in r if k != "bytes"}) + "\n" for r in rows))
    (target / "train/000002.safetensors").unlink()
    before = (target / "train/000000.safetensors").stat().st_mtime_ns
    convert(root, target)
    assert prepared(target) == ["b b.png", "c.png", "ä.png"]
    assert (target / "train/000000.safetensors").stat().st_mtime_ns == before


def test_an_unfinished_preparation_is_told_as_such(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    convert(root, target)
    (target / "manifest.json").unlink()  # written last
    command = f"`cirkd data prepare folder ... {target}`"
    with refuses(target, DataError, "'folder'", command):
        build_dataset("folder", split="train", root=target)
    assert main(["data", "check", "folder", str(target)]) == 2
    told = capsys.readouterr().err
    require_error(told, target, "'folder'", command)
    assert len(told.splitlines()) == 1
    convert(root, target)
    assert len(prepared(target)) == 3


def test_a_preparation_json_of_another_program_hides_no_data(root: Path) -> None:
    for content in ("[1]", '{"dataset": "x"}', "{"):
        (root / "preparation.json").write_text(content)
        assert len(build_dataset("folder", split="train", root=root)) == 3


def test_skip_bad_lists_what_is_missing_and_goes_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, label = tmp_path / "out", root / "labels/train/b b.png"
    content = label.read_bytes()
    label.unlink()
    (root / "images/train/c.png").write_bytes(b"")
    (root / "images/val/d.png").write_bytes((root / "images/val/d.jpg").read_bytes())
    command = ["data", "prepare", "folder", str(root), str(target), "--workers", "1"]
    assert main(command) == 2
    assert "1 file is missing: labels/train/b b.png (to use what is there: --set data." in "".join(
        capsys.readouterr().err.splitlines()
    )
    assert main([*command, "--skip-bad"]) == 0
    shown = capsys.readouterr().out
    assert "skipped labels/train/b b.png: missing" in shown
    assert "train: 1 samples" in shown
    manifest = find_manifest(target)
    assert manifest is not None
    assert sorted(manifest.skipped["train"]) == ["images/train/c.png", "labels/train/b b.png"]
    assert list(manifest.skipped["val"]) == ["images/val/d.jpg and images/val/d.png"]
    assert (prepared(target), len(prepared(target, "val"))) == (["ä.png"], 1)
    label.write_bytes(content)
    assert main([*command, "--skip-bad"]) == 0
    assert prepared(target) == ["b b.png", "ä.png"]
