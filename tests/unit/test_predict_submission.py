"""Cityscapes submissions: written in the server's form, and every way to get them wrong is found."""

from __future__ import annotations

import io
import zipfile

import cv2
import numpy as np
import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.cityscapes import LABEL_IDS
from cirkd_ray.data_tools.prepare import Encoding, prepare
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.evaluate import submission
from cirkd_ray.evaluate.submission import Submission, check_submission
from cirkd_ray.models import build_model
from cirkd_ray.weights import save_model
from tests.errors import refuses, require_error
from tests.unit.test_data_codec import impossible_size

NAMES = [f"leftImg8bit/test/berlin/berlin_{i:06d}_000019_leftImg8bit.png" for i in range(3)]
SIZE = (16, 32)


def labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 19, SIZE, dtype=np.uint8)


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "sent.zip"
    with Submission(path) as archive:
        for seed, name in enumerate(NAMES):
            archive.add(name, labels(seed))
    return path


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def changed(whole, **files: bytes | None):
    """A copy in which files are replaced, added or (None) left out; keys are image numbers or names."""
    path = whole.with_name("changed.zip")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        content = {info.filename: old.read(info) for info in old.infolist()}
        for key, data in files.items():
            name = f"berlin_{int(key[1:]):06d}_000019_pred_labelIds.png" if key[0] == "i" else key
            content[name] = data
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)
    return path


def test_a_submission_holds_label_ids_under_the_servers_names(whole):
    assert check_submission(whole, NAMES, SIZE) == []
    with zipfile.ZipFile(whole) as archive:
        assert archive.namelist() == [f"berlin_{i:06d}_000019_pred_labelIds.png" for i in range(3)]
        stored = cv2.imdecode(
            np.frombuffer(archive.read(archive.namelist()[1]), np.uint8), cv2.IMREAD_UNCHANGED
        )
    assert (stored == np.array(LABEL_IDS)[labels(1)]).all()
    assert [p.name for p in whole.parent.iterdir()] == ["sent.zip"]


def test_the_same_predictions_make_the_same_file(whole, tmp_path):
    again = tmp_path / "again.zip"
    with Submission(again) as archive:
        for seed, name in enumerate(NAMES):
            archive.add(name, labels(seed))
    assert again.read_bytes() == whole.read_bytes()


def test_folders_are_checked_as_well(whole, tmp_path):
    folder = tmp_path / "folder"
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(folder)
    assert check_submission(folder, NAMES, SIZE) == []
    next(folder.iterdir()).unlink()
    assert "1 of 3 images have no prediction" in check_submission(folder, NAMES, SIZE)[0]


VALID = np.full(SIZE, 7, dtype=np.uint8)
TRAIN_IDS = np.full(SIZE, 3, dtype=np.uint8)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"i1": None}, "1 of 3 images have no prediction: berlin_000001_000019"),
        ({"i9": png(VALID)}, "no such image in this split"),
        ({"i0": png(np.dstack([VALID] * 3))}, "must be 8-bit gray, is uint8 with (3,) channels"),
        ({"i0": png(VALID.astype(np.uint16))}, "must be 8-bit gray, is uint16"),
        ({"i0": png(VALID[:8])}, "must be 32x16 pixels, is 32x8"),
        ({"i0": png(TRAIN_IDS)}, "values 3 are no evaluated label ids (these look like train ids)"),
        ({"i0": png(np.full(SIZE, 255, np.uint8))}, "values 255 are no evaluated label ids"),
        ({"i0": png(VALID)[:40]}, "not a readable PNG"),
        ({"i0": b""}, "not a readable PNG"),
        ({"i0": impossible_size("PNG")}, "damaged, or larger than OpenCV decodes"),
        ({"readme.txt": b"hello"}, "not a PNG named CITY_SEQUENCE_FRAME"),
        ({"again/berlin_000000_000019.png": png(VALID)}, "a second prediction for berlin_000000_000019"),
    ],
)
def test_every_fault_is_found_and_named(whole, files, message):
    problems = check_submission(changed(whole, **files), NAMES, SIZE)
    assert len(problems) == 1
    assert message in problems[0]


def test_a_damaged_member_is_a_problem_not_a_crash(whole):
    data = bytearray(whole.read_bytes())
    data[100] ^= 0xFF
    whole.write_bytes(data)
    assert any("not a readable PNG" in problem for problem in check_submission(whole, NAMES, SIZE))


def test_not_a_zip_file(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with refuses(tmp_path / "x.zip", DataError, "zip"):
        check_submission(tmp_path / "x.zip", NAMES)
    with refuses(tmp_path / "missing.zip", DataError, "No such file"):
        check_submission(tmp_path / "missing.zip", NAMES)


def test_an_interrupted_submission_leaves_nothing(tmp_path):
    def interrupted():
        with Submission(tmp_path / "x.zip") as archive:
            archive.add(NAMES[0], labels())
            archive.add(NAMES[0], labels())

    with refuses(NAMES[0], DataError, "berlin_000000_000019"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_impossible_labels_and_names_are_refused(tmp_path):
    with Submission(tmp_path / "x.zip") as archive:
        with pytest.raises(ValueError, match="label 19"):
            archive.add(NAMES[0], np.full(SIZE, 19, np.uint8))
        with refuses("photo.png", DataError, "CITY_SEQUENCE_FRAME"):
            archive.add("photo.png", labels())


@pytest.fixture
def cityscapes(tmp_path):
    """Three small images under the names of the test split."""
    for seed, name in enumerate(NAMES):
        path = tmp_path / "cityscapes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        path.write_bytes(png(picture))
    return tmp_path / "cityscapes"


def test_the_test_split_is_predicted_into_a_submission(cityscapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(submission, "SIZE", SIZE)
    data = build_dataset("cityscapes", split="test", root=cityscapes, subset=True)
    assert submission.server_names(data) == NAMES
    torch.manual_seed(0)
    network = build_model("deeplabv3_mobilenetv2", num_classes=19)
    save_model(network, tmp_path / "model", classes=data.classes, data="cityscapes")
    where = ["--root", str(cityscapes), "--set", "data.subset=true"]
    sent = tmp_path / "sent.zip"
    assert main(["predict", str(tmp_path / "model"), *where, "--submission", str(sent)]) == 0
    assert "fit to send" in capsys.readouterr().out
    with zipfile.ZipFile(sent) as archive:
        values = {
            int(v)
            for n in archive.namelist()
            for v in np.unique(cv2.imdecode(np.frombuffer(archive.read(n), np.uint8), 0))
        }
    assert values <= set(LABEL_IDS)
    assert main(["predict", "--check-submission", str(sent), *where]) == 0
    assert main(["predict", "--check-submission", str(sent)]) == 1  # of all 1525 images
    assert "1522 of 1525 images have no prediction" in capsys.readouterr().out
    (cityscapes / NAMES[1]).write_bytes(b"damaged")
    assert main(["predict", str(tmp_path / "model"), *where, "--submission", str(sent)]) == 1
    printed = capsys.readouterr().out
    assert "skipped" in printed
    assert "1 of 3 images have no prediction" in printed


def test_a_prepared_root_makes_a_submission_unless_it_was_scaled_down(
    cityscapes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(submission, "SIZE", SIZE)
    network = build_model("deeplabv3_mobilenetv2", num_classes=19)
    data = build_dataset("cityscapes", split="test", root=cityscapes, subset=True)
    save_model(network, tmp_path / "model", classes=data.classes, data="cityscapes")
    for size in (SIZE[1], SIZE[0]):
        prepare({"test": data}, "cityscapes", {}, str(tmp_path / str(size)), Encoding(max_size=size))
    sent = ["--submission", str(tmp_path / "sent.zip"), "--root"]
    assert main(["predict", str(tmp_path / "model"), *sent, str(tmp_path / str(SIZE[1]))]) == 0
    assert "fit to send" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "model"), *sent, str(tmp_path / str(SIZE[0]))]) == 2
    require_error(capsys.readouterr().err, "--submission", "--max-size 16", "32x16")


def test_only_cityscapes_can_be_submitted(capsys):
    for other in (None, build_dataset("shapes", split="val")):
        with refuses("--submission", ConfigError, "--data cityscapes"):
            submission.server_names(other)
    assert main(["predict", "--check-submission", "x.zip", "--data", "voc"]) == 2
    require_error(capsys.readouterr().err, "--check-submission", "Cityscapes", "voc")
    assert main(["predict", "--check-submission", "x.zip", "--split", "tset"]) == 2
    require_error(capsys.readouterr().err, "--split", "'tset'", "'test'")


def test_large_real_size_is_the_default(tmp_path):
    path = tmp_path / "x.zip"
    with Submission(path) as archive:
        archive.add(NAMES[0], np.zeros((1024, 2048), np.uint8))
    assert check_submission(path, NAMES[:1]) == []
    assert io.BytesIO(path.read_bytes()).getbuffer().nbytes < 100_000
