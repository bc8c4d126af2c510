"""A repeated command leaves nothing of an image or file that failed this time (case 14)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.evaluate.submission import Submission
from cirkd_ray.files import remove_old
from cirkd_ray.models import build_model
from cirkd_ray.weights import save_model
from cirkd_ray.weights.export import ExportError
from tests.errors import refuses

SIZE = {"height": 32, "width": 48, "val_images": 2}
SET = [text for key, value in SIZE.items() for text in ("--set", f"data.{key}={value}")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    classes = build_dataset("shapes", split="val", **SIZE).classes
    torch.manual_seed(0)
    network = build_model("fcn:test_resnet", num_classes=len(classes), head_channels=8)
    save_model(network, tmp_path / "model", classes=classes, data="shapes")
    return tmp_path / "model"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_predictions_of_an_image_that_is_damaged_now_are_gone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in (1, 2, 3):
        cv2.imwrite(str(photos / f"{number}.png"), np.full((24, 32, 3), 40 * number, np.uint8))
    words = ["predict", str(model), str(photos), "--out", str(out)]
    assert main(words) == 0
    assert len(files(out)) == 9
    content = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert main([*words, "--write", "ids"]) == 1  # the other forms are as old
    assert str(photos / "2.png") in capsys.readouterr().out.replace("\n", "")
    assert [name for name in files(out) if "/2." in name] == []
    assert len(files(out)) == 6  # the others' colours stay


def test_a_report_of_an_evaluation_that_fails_now_is_gone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", str(model), "--device", "cpu", "--split", "val", *SET, "--out", str(tmp_path / "report")]
    assert main([*words, "--worst", "1", "--bootstrap", "0"]) == 0
    assert len(files(tmp_path / "report")) == 4
    assert main([*words, "--worst", "0", "--bootstrap", "0"]) == 0
    assert "worst.png" not in files(tmp_path / "report")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    (model / "student.safetensors").write_bytes(b"")
    assert main(words) == 2
    assert files(tmp_path / "report") == ["notes.txt"]


def test_an_export_that_fails_now_leaves_no_file(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.weights import export

    target = model / "student.pt"
    words = ["export", str(model), "--to", "torchscript", "--size", "64", "64"]
    assert main(words) == 0
    assert target.is_file()

    def differs(*_: object) -> None:
        raise ExportError("the file differs")

    with monkeypatch.context() as patch:
        patch.setattr(export, "_compare", differs)
        assert main(words) == 2
    assert not target.exists()
    assert main([*words, "--out", str(model / "student.safetensors")]) == 2
    assert "--out" in capsys.readouterr().err
    assert (model / "student.safetensors").is_file()


def test_a_submission_that_fails_now_leaves_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with Submission(path):
        pass
    assert path.is_file()
    with pytest.raises(RuntimeError), Submission(path):
        raise RuntimeError
    assert files(tmp_path) == []


def test_what_cannot_be_deleted_is_named(tmp_path: Path) -> None:
    with refuses(tmp_path):
        remove_old(tmp_path)
    remove_old(tmp_path / "none")
