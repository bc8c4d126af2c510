"""Quantised files: written beside the float one, compared on labelled images, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.models import build_model
from cirkd_ray.weights import save_model
from tests.errors import require_error
from tests.tinyrun import NETWORK

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
SCENES = ("--set", "data.height=32", "--set", "data.width=64", "--set", "data.val_images=4")
SMALL = ("--static", "--size", "32", "64", "--calibration", "8")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    data = build_dataset("shapes", split="val", height=32, width=64)
    settings = {key: value for key, value in NETWORK.items() if key != "name"}
    model = build_model(str(NETWORK["name"]), num_classes=len(data.classes), **settings)
    save_model(model.eval(), tmp_path, data.classes, data="shapes")
    return tmp_path


def test_a_quantised_file_beside_the_float_one(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(student), "--int8", *SMALL, *SCENES]) == 0
    told = capsys.readouterr().out
    assert "mIoU on 4 images" in told
    whole, small = student / "student.onnx", student / "student.int8.onnx"
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    for path in (whole, small):
        meta = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        assert json.loads(meta["classes"])[0] == "road"
        assert json.loads(meta["preprocessing"]) == "in the graph"
    inputs = onnxruntime.InferenceSession(str(small)).get_inputs()
    assert inputs[0].shape == [1, 3, 32, 64]


def test_what_cannot_be_quantised_is_said(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(student), "--int8", "--to", "torchscript"]) == 2
    require_error(capsys.readouterr().err, "--int8", "torchscript")
    card = json.loads((student / "model.json").read_text())
    del card["data"]
    (student / "model.json").write_text(json.dumps(card))
    assert main(["export", str(student), "--int8"]) == 2
    require_error(capsys.readouterr().err, str(student), "--data")
    assert not list(student.glob("*.onnx"))
