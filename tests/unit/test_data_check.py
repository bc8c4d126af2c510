"""The check finds every fault of every file, counts right, and stays small however large the set is."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset, codec, masks
from cirkd_ray.data.ade20k import ADE20K
from cirkd_ray.data.coco_stuff_164k import CocoStuff164k
from cirkd_ray.data.files import packaged_list
from cirkd_ray.data.storage import LocalStorage
from cirkd_ray.data_tools.check import check
from tests.errors import require_error
from tests.paths import REPO, data_root
from tests.unit.test_data_sets import make_folder, open_set, write_pair


def png(content: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", content)[1].tobytes())


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Ten samples: two good ones, a gray one, one turned by its camera, and six with a fault each."""
    names = {
        f"train/{n}": 1 for n in ("a good", "b good", "c gray", "d turned", "e cut", "f empty", "g size")
    }
    names |= {f"train/{n}": 1 for n in ("h value", "i colour", "j gone")}
    root = make_folder(tmp_path, {"classes": ["x", "y"]}, names)
    images, labels = root / "images/train", root / "labels/train"
    (images / "c gray.png").write_bytes(png(np.full((5, 7), 9, np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    (images / "d turned.png").unlink()
    (images / "d turned.jpg").write_bytes(saved(Image.new("RGB", (7, 5)), "JPEG", exif=exif))
    (images / "e cut.png").write_bytes((images / "e cut.png").read_bytes()[:-30])
    (images / "f empty.png").write_bytes(b"")
    (labels / "g size.png").write_bytes(png(np.zeros((5, 8), np.uint8)))
    (labels / "h value.png").write_bytes(png(np.full((5, 7), 77, np.uint8)))
    (labels / "i colour.png").write_bytes(png(np.zeros((5, 7, 3), np.uint8)))
    (labels / "j gone.png").unlink()
    return root


@pytest.mark.parametrize("workers", [1, 3])
def test_every_fault_is_found_and_the_rest_counted(bad: Path, workers: int) -> None:
    done: list[int] = []
    report = check(build_dataset("folder", split="train", root=bad, subset=True), workers, done.append)
    *of_files, turned, one = report.findings
    assert (turned.kind, one.kind) == ("orientation", "one class")
    assert "images/train/d turned.jpg" in turned.message
    assert "of one class only, 'y'" in one.message
    assert [(f.kind, f.message.split(": ")[0].rsplit("/", 1)[1]) for f in of_files] == [
        ("missing file", "j gone.png"),
        ("unreadable", "e cut.png"),
        ("unreadable", "f empty.png"),
        ("size mismatch", "g size.png"),
        ("impossible label", "h value.png"),
        ("unreadable", "i colour.png"),
    ]
    assert not report.sound
    assert sum(done) == 9
    assert report.images == 4
    assert report.pixels.tolist() == [0, 4 * 35]
    assert report.seen.tolist() == [0, 4]
    assert dict(report.sizes) == {(5, 7): 4}
    assert dict(report.formats) == {"L": 1}
    assert report.turned == 1


def test_camvid_is_sound_and_counted_right() -> None:
    root = data_root("camvid")
    report = check(build_dataset("camvid", split="val", root=root))
    expected = json.loads((data_root("meta") / "camvid.json").read_text())["pixel_counts"]["val"]
    assert report.sound
    assert [*report.pixels.tolist(), report.ignored] == list(expected.values())
    assert dict(report.sizes) == {(360, 480): 101}


def test_an_odd_error_does_not_end_the_check(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_set("folder", "train", bad, subset=True)
    whole = data.load_label

    def odd(index: int, *about: object) -> np.ndarray:
        if index == 1:
            raise RuntimeError("never seen before")
        return whole(index, *about)

    monkeypatch.setattr(data, "load_label", odd)
    findings = check(data).findings
    assert ("program error", "images/train/b good.png: RuntimeError: never seen before") in [
        (f.kind, f.message) for f in findings
    ]
    assert len(findings) == 9


def test_the_command_prints_a_table_and_says_so_in_its_exit_code(
    bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["data", "check", "folder", str(bad), "--split", "train", "--json", str(report)]) == 1
    shown = capsys.readouterr().out
    assert "size mismatch: 1" in shown
    assert "i colour.png: holds RGB values" in shown
    written = json.loads(report.read_text())["train"]
    assert len(written["findings"]) == 8
    assert written["classes"][1] == {"name": "y", "pixels": 140, "images": 4}
    make_folder(tmp_path / "good", {"classes": ["x"]}, {"train/a": 0})
    assert main(["data", "check", "folder", str(tmp_path / "good"), "--split", "train"]) == 0
    assert main(["data", "check", "folder", str(tmp_path / "nowhere")]) == 2
    require_error(capsys.readouterr().err, "data.root", tmp_path / "nowhere", "exist")
    assert main(["data", "check", "foldr", str(bad)]) == 2
    require_error(capsys.readouterr().err, "foldr", "'foldr'", "'folder'")


def test_names_that_come_twice_do_not_end_the_check(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"classes": ["x", "y"]}, {"train/a": 0, "train/b": 1, "train/c": 1})
    (root / "images/train/b.jpg").write_bytes(saved(Image.new("RGB", (7, 5)), "JPEG"))
    (root / "images/train/c.png").write_bytes(b"")
    report = check(open_set("folder", "train", root, subset=True))
    found = [(f.kind, f.message.partition(":")[0].rpartition("/")[2]) for f in report.findings]
    assert found == [("duplicate name", "b.png"), ("unreadable", "c.png")]
    assert report.images == 2
    (root / "list.txt").write_text("train/a\ntrain/a\ntrain/c\n")
    report = check(open_set("folder", "list", root, subset=True))
    assert [f.kind for f in report.findings] == ["duplicate name", "unreadable", "one class"]
    assert "train/a (listed 2 times)" in report.findings[0].message


def test_a_label_without_an_image_is_found(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"classes": ["x"]}, {"train/a": 0, "train/deep/b": 0})
    (root / "images/train/deep/b.png").unlink()
    report = check(open_set("folder", "train", root, subset=True))
    assert [f.kind for f in report.findings] == ["missing file"]
    assert report.findings[0].message.endswith("images/train/deep/b.*: missing")
    assert report.images == 1


def test_images_that_only_opencv_opens_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow, which is asked for mode and orientation, refuses more than 179 million pixels."""
    root = make_folder(tmp_path, {"classes": ["x"]}, {"train/a": 0})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    report = check(open_set("folder", "train", root))
    assert (report.findings, report.images) == ([], 1)
    assert dict(report.formats) == {"not known to Pillow": 1}


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    odd = os.fsdecode(b"train/caf\xe9")
    root = make_folder(tmp_path, {"classes": ["x"]}, {"train/a": 0, odd: 0, f"{odd}2": 0})
    (root / f"labels/{odd}2.png").unlink()
    report = check(open_set("folder", "train", root, subset=True))
    assert [finding.kind for finding in report.findings] == ["missing file", "name not UTF-8"]
    assert all("train/caf\\udce9" in finding.message for finding in report.findings)
    assert report.images == 1


def test_a_missing_split_is_a_finding_and_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, report = make_folder(tmp_path, {"classes": ["x"]}, {"val/a": 0}), tmp_path / "report.json"
    assert main(["data", "check", "folder", str(root), "--json", str(report)]) == 1
    written = json.loads(report.read_text())
    assert [finding[0] for finding in written["train"]["findings"]] == ["missing split"]
    assert "images/train: no such folder" in written["train"]["findings"][0][1]
    assert (written["val"]["images"], written["val"]["findings"]) == (1, [])
    assert "folder, train, missing split: 1" in capsys.readouterr().out
    assert main(["data", "check", "folder", str(root), "--split", "train"]) == 2, "there is nothing to check"


def test_a_prepared_root_is_checked_by_its_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "raw", {"classes": ["x", "y"]}, {"train/a": 0, "train/b": 1})
    arguments = [
        "data",
        "prepare",
        "folder",
        str(root),
        str(tmp_path / "out"),
        "--split",
        "train",
        "--lossless",
    ]
    assert main(arguments) == 0
    assert "data.root=" in capsys.readouterr().out
    again = ["data", "check", "folder", str(tmp_path / "out"), "--split", "train"]
    assert main(again) == 0
    path = tmp_path / "out" / "train" / "000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    assert main(again) == 1
    assert "differs from its checksum" in capsys.readouterr().out


def pretend(root: Path, count: int, patch: pytest.MonkeyPatch, height: int = 9, width: int = 9) -> None:
    """Make local folders look like COCO-Stuff's train split, of which every file is the same pair."""
    stem = packaged_list("coco_stuff_164k", "val")[0]
    write_pair(
        root, f"images/train2017/{stem}.jpg", f"annotations/train2017/{stem}.png", np.full((height, width), 5)
    )
    content = {
        "images": (root / f"images/train2017/{stem}.jpg").read_bytes(),
        "annotations": (root / f"annotations/train2017/{stem}.png").read_bytes(),
    }
    ids = packaged_list("coco_stuff_164k", "train")[:count]
    present = {
        "images/train2017": [f"{i}.jpg" for i in ids],
        "annotations/train2017": [f"{i}.png" for i in ids],
    }
    patch.setattr(
        LocalStorage, "names", lambda self, folder: present.get(folder, ["x"] if folder == "" else [])
    )
    patch.setattr(LocalStorage, "read", lambda self, path: content[path.partition("/")[0]])


class Held:
    """Counts the results of some functions that live at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def watching(self, make: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """The function, with its results counted as long as somebody holds them."""

        def counted(*args: object) -> np.ndarray:
            array = make(*args)
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            weakref.finalize(array, self.gone)
            return array

        return counted

    def gone(self) -> None:
        with self.lock:
            self.now -= 1


@pytest.mark.parametrize("count", [1500, pytest.param(118287, marks=pytest.mark.slow)])
def test_a_set_as_large_as_coco_takes_little_more_memory(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, count, monkeypatch)
    data = CocoStuff164k(split="train", root=tmp_path, subset=True)
    held = Held()
    for reader in (codec, masks):
        monkeypatch.setattr(reader, "opencv_decode", held.watching(reader.opencv_decode))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = check(data, 2)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (len(data), report.images, report.pixels[5]) == (count, count, count * 81)
    assert 1 <= held.most <= 2 * 2, "a worker has one image and its label"
    # The growth, not the whole: this process has run other tests, too.
    assert grown < 60, f"{grown:.0f} MB more"


CHILD = """
import re, sys
from pathlib import Path
import pytest
from cirkd_ray.cli import main
from tests.unit.test_data_check import pretend
root, report, count, *size = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
with pytest.MonkeyPatch.context() as patch:
    pretend(root, count, patch, *size)
    code = main(["data", "check", "coco_stuff_164k", str(root), "--split", "train", "--json", report])
print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's figures of a process")
@pytest.mark.parametrize(
    ("count", "height", "width"), [(600, 480, 640), pytest.param(118287, 9, 9, marks=pytest.mark.slow)]
)
def test_the_command_checks_a_set_as_large_as_coco_in_less_than_a_gigabyte(
    count: int, height: int, width: int, tmp_path: Path
) -> None:
    """The whole command in a process of its own. Its peak is the kernel's VmHWM: unlike ru_maxrss, that
    starts anew in the child. The pictures of the first case take 0.7 GB together, beside as much for the
    libraries; the second case has the real number of files.
    """
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(report), *map(str, (count, height, width))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert json.loads(report.read_text())["train"]["images"] == count, done.stderr
    assert f"{count} good samples" in done.stdout
    peak = int(done.stdout.rpartition("peak ")[2]) / 1024
    assert peak < 1000, f"{peak:.0f} MB"


def test_missing_files_of_a_large_list_are_all_reported(tmp_path: Path) -> None:
    write_pair(
        tmp_path,
        "images/validation/ADE_val_00000007.jpg",
        "annotations/validation/ADE_val_00000007.png",
        np.eye(3),
    )
    report = check(ADE20K(split="val", root=tmp_path, subset=True))
    kinds = [finding.kind for finding in report.findings]
    assert kinds == ["missing file"] * 3998 + ["class never occurs", "one class", "ignored pixels"]
    assert report.images == 1
