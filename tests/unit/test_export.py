"""Exports run in ONNX Runtime, TorchScript and torch.export as PyTorch does, and what does not is refused.

Recording a graph for any image size takes long, so the default run exports real heads on the smallest
encoder there is, and one real network of a fixed size; whole networks of any size are among the slow tests.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from cirkd_ray.cli import main
from cirkd_ray.errors import UserError
from cirkd_ray.models import build_model
from cirkd_ray.models.blocks import adaptive_average_pool
from cirkd_ray.models.encoders import Encoder
from cirkd_ray.models.heads import HEADS, EncoderInfo
from cirkd_ray.models.segmentation import EncoderDecoder
from cirkd_ray.types import CAFFE, IMAGENET
from cirkd_ray.weights import LoadedModel, export, save_model
from cirkd_ray.weights.export import SUFFIXES, ExportError, ExportOptions, export_model
from cirkd_ray.weights.package import numbered_classes
from tests.errors import refuses, require_error

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


class TinyEncoder(nn.Module):
    """Two convolutions, two maps of strides 4 and 8."""

    info = EncoderInfo((4, 8), (4, 8))
    multiple = 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, stride=4, padding=2)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self.first(images).relu()
        return [fine, self.second(fine).relu()]


def tiny(head: str = "fcn", preprocessing=IMAGENET) -> LoadedModel:
    torch.manual_seed(0)
    settings = {"pool_channels": 4} if head == "upernet" else {}
    built = HEADS.build(
        head, {"encoder": TinyEncoder.info, "num_classes": 3}, {"head_channels": 8, **settings}
    )
    nn.init.normal_(built.classifier.weight)
    model = EncoderDecoder(
        TinyEncoder(),
        built,
        None,
        name=f"tiny {head}",
        num_classes=3,
        settings={},
        preprocessing=preprocessing,
    )
    return LoadedModel(model.eval(), preprocessing, numbered_classes(3), {})


def by_hand(loaded: LoadedModel, images: torch.Tensor) -> torch.Tensor:
    """Scores at image size from raw images."""
    with torch.inference_mode():
        logits = loaded.model(loaded.preprocessing(images)).logits
        return nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 6), (7, 13), (4, 5), (1, 20)])
def test_exported_pooling_equals_the_operator(monkeypatch, bins, size):
    x = torch.randn(2, 3, *size)
    monkeypatch.setattr("cirkd_ray.models.blocks.tracing", lambda: True)
    torch.testing.assert_close(
        adaptive_average_pool(x, bins), nn.functional.adaptive_avg_pool2d(x, bins), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("head", [pytest.param("pspnet", marks=pytest.mark.slow), "upernet"])
def test_onnx_of_any_size_gives_pytorchs_labels(tmp_path, head):
    loaded = tiny(head, CAFFE)
    report = export_model(loaded, tmp_path / "m.onnx", "onnx", ExportOptions(size=(64, 96)))
    assert report.checked == ((2, 64, 96), (3, 160, 160), (1, 101, 157))
    session = onnxruntime.InferenceSession(report.path)
    assert session.get_inputs()[0].name == "images"
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].name == "labels"
    images = torch.randint(0, 256, (1, 3, 40, 72)).float()
    labels = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    expected = by_hand(loaded, images).argmax(1)
    assert labels.dtype == torch.int64
    assert len(expected.unique()) > 1
    assert (labels == expected).float().mean() > 0.999


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_of_an_encoder_that_pads_maps_are_cut_alike(tmp_path, kind):
    """At a size that is a multiple of no stride; timm's encoders of any name pad."""

    class Padding(nn.Module):
        info, multiple, channels_last = TinyEncoder.info, 8, False
        forward = Encoder.forward

        def __init__(self) -> None:
            super().__init__()
            self.body = TinyEncoder()

    loaded = tiny()
    loaded.model.encoder = Padding()
    report = export_model(loaded, tmp_path / "m.x", kind, ExportOptions(labels=False, size=(64, 96)))
    images = torch.randint(0, 256, (1, 3, 71, 90)).float()
    found = export._reader(kind, report.path)(images)
    torch.testing.assert_close(found, by_hand(loaded, images), rtol=1e-3, atol=1e-4)


def test_onnx_scores_without_preprocessing_of_a_fixed_size(tmp_path):
    loaded = tiny()
    options = ExportOptions(preprocessing=False, labels=False, dynamic=False, size=(32, 48))
    report = export_model(loaded, tmp_path / "m.onnx", "onnx", options, opset=18)
    assert (report.opset, report.checked) == (18, ((1, 32, 48),))
    assert opset_of(report.path) == 18
    session = onnxruntime.InferenceSession(report.path)
    assert session.get_inputs()[0].shape == [1, 3, 32, 48]
    images = torch.randint(0, 256, (1, 3, 32, 48)).float()
    scores = session.run(None, {"images": loaded.preprocessing(images).numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(scores), by_hand(loaded, images), rtol=1e-4, atol=1e-4)


def opset_of(path) -> int:
    return next(entry.version for entry in onnx.load(path).opset_import if not entry.domain)


def test_an_operator_set_that_cannot_be_had_is_told(tmp_path, caplog):
    """PyTorch keeps its own set, and logs a traceback, where it cannot convert."""
    options = ExportOptions(labels=False, dynamic=False, size=(32, 32))
    report = export_model(tiny(), tmp_path / "m.onnx", "onnx", options, opset=21)
    assert report.opset == opset_of(report.path) == 21
    with refuses("--opset", ExportError, 13, 18):
        export_model(tiny(), tmp_path / "n.onnx", "onnx", options, opset=13)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_pytorchs_own_formats(tmp_path, kind):
    loaded = tiny("pspnet", CAFFE)
    report = export_model(loaded, tmp_path / "m.x", kind, ExportOptions(labels=False, size=(64, 96)))
    reader = torch.jit.load if kind == "torchscript" else lambda path: torch.export.load(path).module()
    if kind == "torch-export":
        report.path.rename(tmp_path / "m.pt2")
    run = reader(str(tmp_path / ("m.x" if kind == "torchscript" else "m.pt2")))
    images = torch.randint(0, 256, (3, 3, 41, 73)).float()
    torch.testing.assert_close(run(images), by_hand(loaded, images), rtol=1e-4, atol=1e-3)
    assert report.largest_difference < 1e-3


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_reader", lambda kind, path: lambda x: torch.zeros(len(x), 3, *x.shape[2:]))
    with refuses(tmp_path / "m.pt", ExportError, "2 x 3 x 32 x 32", "PyTorch"):
        export_model(tiny(), tmp_path / "m.pt", "torchscript", ExportOptions(labels=False, size=(32, 32)))
    monkeypatch.setattr(export, "_reader", lambda kind, path: lambda x: torch.zeros(1, 2))
    with refuses(tmp_path / "m.pt", ExportError, "(1, 2)", "(2, 32, 32)"):
        export_model(tiny(), tmp_path / "m.pt", "torchscript", ExportOptions(size=(32, 32)))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_holds_for_one_size_is_found_out(tmp_path):
    class Fixed(TinyEncoder):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            maps = super().forward(images)
            return [maps[0], maps[1] * torch.ones(int(maps[1].shape[2]), 1)]

    loaded = tiny()
    loaded.model.encoder = Fixed()
    with refuses(tmp_path / "m.pt", ExportError, "--static"):
        export_model(loaded, tmp_path / "m.pt", "torchscript", ExportOptions(size=(32, 32)))
    export_model(loaded, tmp_path / "m.pt", "torchscript", ExportOptions(size=(32, 32), dynamic=False))


def test_command_writes_checks_and_tells(tmp_path, capsys):
    model = build_model("fcn:test_resnet", num_classes=4, head_channels=8, aux=True)
    save_model(model, tmp_path, numbered_classes(4))
    words = ["export", str(tmp_path), "--to", "torchscript", "--size", "64", "64", "--scores"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "student.pt" in text
    assert "checked on 2 x 3 x 64 x 64, 3 x 3 x 160 x 128, 1 x 3 x 101 x 125: difference of scores" in text
    assert (tmp_path / "student.pt").is_file()
    assert main(["export", str(tmp_path / "absent")]) == 2
    require_error(capsys.readouterr().err, tmp_path / "absent", "model.json")
    assert main(["export", str(tmp_path), "--size", "0", "64"]) == 2
    require_error(capsys.readouterr().err, "--size", 1, 0)


def test_a_place_that_takes_no_file_is_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_torchscript", lambda *_: pytest.fail("exported in vain"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    places = {
        "file/m.pt": ("file", tmp_path / "file", "folder"),
        "folder": ("folder", "folder", "--out"),
    }
    for place, (subject, *facts) in places.items():
        with refuses(tmp_path / subject, UserError, *facts):
            export_model(tiny(), tmp_path / place, "torchscript", ExportOptions(size=(32, 32)))
    monkeypatch.setattr("cirkd_ray.files.os.access", lambda *_: False)
    with refuses(tmp_path, UserError, "read-only"):
        export_model(tiny(), tmp_path / "m.pt", "torchscript", ExportOptions(size=(32, 32)))


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(torch.onnx, "export", absent)
    with refuses("tiny fcn", ExportError, "onnxscript", "'.[export]'"):
        export_model(tiny(), tmp_path / "m.onnx", "onnx", ExportOptions(size=(32, 32)))


def test_suffixes_cover_the_kinds():
    assert set(SUFFIXES) == {"onnx", "torchscript", "torch-export"}


def test_a_real_network_of_a_fixed_size(tmp_path):
    torch.manual_seed(0)
    model = build_model("deeplabv3:lcnet_035", num_classes=5, head_channels=8).eval()
    loaded = LoadedModel(model, model.preprocessing, numbered_classes(5), {})
    options = ExportOptions(size=(65, 97), dynamic=False, labels=False)
    assert export_model(loaded, tmp_path / "m.onnx", "onnx", options).largest_difference < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "deeplabv3_resnet18",
        "deeplabv3_mobilenetv2",
        "pspnet_resnet18",
        "segformer_b0",
        "upernet_resnet18",
        "fcn:mobilenetv3_small_050",
    ],
)
def test_whole_networks_of_any_size(tmp_path, name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).eval()
    loaded = LoadedModel(model, model.preprocessing, numbered_classes(5), {})
    for kind, suffix in SUFFIXES.items():
        export_model(loaded, tmp_path / f"m{suffix}", kind, ExportOptions(labels=False, size=(64, 96)))
