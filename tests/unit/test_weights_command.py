"""`cirkd weights`: inspect, import, verify, get, as they are typed."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from cirkd_ray.cli import main
from cirkd_ray.errors import WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.types import CAFFE, ClassSet
from cirkd_ray.weights import load_model, save_model
from cirkd_ray.weights.loading import load_weights, to_reference
from cirkd_ray.weights.package import numbered_classes, save_encoder
from tests.errors import refuses, require_error

NAME = "deeplabv3_mobilenetv2"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file as the release publishes it, and the network that is in it."""
    torch.manual_seed(0)
    model = build_model(NAME, num_classes=11).eval()
    path = tmp_path_factory.mktemp("official") / "deeplabv3_mbv2_citys_best.pth"
    torch.save({f"module.{k}": v for k, v in to_reference(model.state_dict(), NAME).items()}, path)
    return path, model


def cirkd(capsys, *words: object) -> tuple[int, str]:
    """Exit code, and what was printed on both streams."""
    code = main(["weights", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_inspect_names_the_network(official, capsys):
    code, text = cirkd(capsys, "inspect", official[0])
    assert code == 0
    assert "a network of the CIRKD release" in text
    assert "deeplabv3_mobilenetv2: fits" in text
    assert "classes 11" in " ".join(text.split())
    assert "3.23 M parameters" in text


def test_inspect_says_what_does_not_fit(official, tmp_path, capsys):
    state = torch.load(official[0], weights_only=True)
    del state["module.head.block.0.weight"]
    state["module.head.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    code, text = cirkd(capsys, "inspect", tmp_path / "odd.pth")
    assert code == 0
    assert "nearest is deeplabv3_mobilenetv2" in text
    assert "1: head.block.0.weight" in text
    assert "1: head.extra" in text


def test_inspect_against_a_named_network(official, capsys):
    assert "fits (" in cirkd(capsys, "inspect", official[0], "--model", NAME)[1]
    _, text = cirkd(capsys, "inspect", official[0], "--model", NAME, "--set", "head_channels=64")
    assert "of another shape" in text


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torchvision.models.mobilenet_v2().state_dict(), "an ImageNet backbone of torchvision"),
        (
            lambda: torchvision.models.mobilenet_v3_small(weights=None).state_dict(),
            "an ImageNet backbone of torchvision",
        ),
        (lambda: {"head.weight": torch.zeros(3)}, "unknown; name a network"),
        (
            lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
                weights_backbone=None
            ).state_dict(),
            "a segmentation network of torchvision",
        ),
        (lambda: build_model("fcn:test_resnet", num_classes=2).state_dict(), "a network of this package"),
    ],
)
def test_inspect_knows_other_makes(make, expected, tmp_path, capsys):
    torch.save(make(), tmp_path / "x.pth")
    code, text = cirkd(capsys, "inspect", tmp_path / "x.pth")
    assert code == 0
    assert expected in text


def test_import_makes_a_folder_that_loads(official, tmp_path, capsys):
    path, model = official
    code, text = cirkd(capsys, "import", path, "--data", "camvid", "--out", tmp_path / "out")
    assert code == 0
    assert f"teacher.weights={tmp_path / 'out'}" in text
    loaded = load_model(tmp_path / "out")
    assert loaded.preprocessing == CAFFE
    assert loaded.classes.names[0] == "Sky"
    images = torch.randn(1, 3, 33, 47)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images).logits, model(images).logits)


def test_import_checks_the_classes(official, tmp_path, capsys):
    code, text = cirkd(capsys, "import", official[0], "--data", "folder", "--out", tmp_path / "out")
    assert code == 2
    require_error(text, "--data folder", "classes")
    code, text = cirkd(capsys, "import", official[0], "--data", "shapes", "--out", tmp_path / "out")
    assert code == 2
    require_error(text, "--data shapes", "12 classes", 11)
    assert not (tmp_path / "out").exists()


def test_import_of_a_backbone_starts_a_student(tmp_path, capsys):
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "timm.pth")
    code, text = cirkd(
        capsys, "import", tmp_path / "timm.pth", "--model", "pspnet:test_resnet", "--out", tmp_path / "out"
    )
    assert code == 0
    assert "an ImageNet backbone of timm" in text
    student = build_model("deeplabv3:test_resnet", num_classes=4)
    report = load_weights(student, tmp_path / "out" / "encoder.safetensors")
    assert report.kind == "cirkd_ray backbone"
    assert report.preprocessing == build_model("pspnet:test_resnet", num_classes=2).preprocessing
    assert torch.equal(student.encoder.body.conv1[0].weight, state["conv1.0.weight"])


def test_import_needs_to_know_the_network(tmp_path, capsys):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.pth")
    code, text = cirkd(capsys, "import", tmp_path / "timm.pth")
    assert code == 2
    require_error(text, tmp_path / "timm.pth", "--model NAME")


def test_import_of_the_wrong_network_lists_what_differs(official, tmp_path, capsys):
    code, text = cirkd(capsys, "import", official[0], "--model", "pspnet_resnet18", "--out", tmp_path / "out")
    assert code == 2
    require_error(text, official[0], "pspnet_resnet18", "missing: encoder.body.conv1.0.weight")


def test_verify_runs_a_forward(official, tmp_path, capsys):
    code, text = cirkd(capsys, "verify", official[0], "--size", 64, 96)
    assert code == 0
    assert "64 x 96 -> 11 x 8 x 12 scores" in text
    save_model(official[1], tmp_path, ClassSet(("a",) * 11, ((0, 0, 0),) * 11))
    assert cirkd(capsys, "verify", tmp_path, "--size", 32, 32)[0] == 0


def test_verify_finds_scores_that_are_not_finite(official, tmp_path, capsys):
    state = torch.load(official[0], weights_only=True)
    state["module.head.block.4.weight"][3] = 3e38
    torch.save(state, tmp_path / "huge.pth")
    code, text = cirkd(capsys, "verify", tmp_path / "huge.pth", "--size", 32, 32)
    assert code == 2
    require_error(text, tmp_path / "huge.pth", "finite")


def test_get_lists_and_refuses(capsys, tmp_path):
    code, text = cirkd(capsys, "get")
    assert code == 0
    assert "cirkd_cityscapes_deeplabv3_resnet101" in text
    code, text = cirkd(capsys, "get", "cirkd_cityscapes_deeplabv3_resnet11")
    assert code == 2
    require_error(text, "cirkd_cityscapes_deeplabv3_resnet11", "'cirkd_cityscapes_deeplabv3_resnet101'")
    code, text = cirkd(capsys, "get", "torchvision_resnet18", "--offline", "--out", tmp_path)
    assert code == 2
    require_error(text, tmp_path / "resnet18-f37072fd.pth", "offline")


def test_get_names_files_after_addresses(capsys, tmp_path):
    (tmp_path / "x.pth").touch()
    words = ("--offline", "--out", tmp_path)
    code, text = cirkd(capsys, "get", "http://host.invalid/a/x.pth?b=c/d#e", *words)
    assert code == 0
    assert "was there already, from where is not known" in text
    code, text = cirkd(capsys, "get", "http://host.invalid/a/..", *words)
    assert code == 2
    require_error(text, "http://host.invalid/a/..", "'..'")


def test_missing_files_and_bad_settings_are_users_errors(official, capsys, tmp_path):
    code, text = cirkd(capsys, "inspect", tmp_path / "absent.pth")
    assert code == 2
    require_error(text, tmp_path / "absent.pth", "model.json")
    code, text = cirkd(capsys, "verify", official[0], "--set", "dropout")
    assert code == 2
    require_error(text, "--set 'dropout'", "PATH=VALUE")
    code, text = cirkd(capsys, "verify", official[0], "--set", "dropout=[")
    assert code == 2
    require_error(text, "--set 'dropout=['", "YAML")
    code, text = cirkd(capsys, "verify", official[0], "--set", "droput=0")
    assert code == 2
    require_error(text, f"{NAME}.droput", "'dropout'")


def test_numbered_classes_have_vocs_colours():
    classes = numbered_classes(21)
    assert classes.names[20] == "class 20"
    assert classes.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert classes.palette[15] == (192, 128, 128)
    assert classes.palette[20] == (0, 64, 128)
    assert len(set(numbered_classes(182).palette)) == 182


def test_a_file_of_our_own_fits_the_network_with_its_own_settings(tmp_path, capsys):
    model = build_model("deeplabv3:test_resnet", num_classes=3, head_channels=16)
    save_model(model, tmp_path, numbered_classes(3))
    code, text = cirkd(capsys, "inspect", tmp_path / "student.safetensors")
    assert code == 0
    assert "of another shape" not in text
    assert "deeplabv3:test_resnet" in text
    for words in (["verify"], ["inspect"]):
        code, text = cirkd(capsys, *words, tmp_path, "--set", "nonsense=1")
        assert code == 2
        assert "deeplabv3:test_resnet.nonsense" in text
    code, text = cirkd(capsys, "verify", tmp_path, "--set", "output_stride=32", "--size", 64, 64)
    assert code == 0
    assert "64 x 64 -> 3 x 2 x 2 scores" in text


@pytest.mark.parametrize("size", [(0, 0), (-5, 8)])
def test_sizes_that_no_image_has_are_refused(size, official, capsys):
    code, text = cirkd(capsys, "verify", official[0], "--size", *size)
    assert code == 2
    require_error(text, "--size", 1)


def test_inspect_heeds_settings_without_a_name(official, capsys):
    code, text = cirkd(capsys, "inspect", official[0], "--set", "head_channels=64")
    assert code == 0
    assert "of another shape" in text


@pytest.fixture(scope="module")
def resnet18():
    """Entries of torchvision's ResNet-18."""
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize("action", ["import", "verify"])
def test_a_file_that_fits_another_network_says_which(action, resnet18, tmp_path, capsys):
    torch.save(resnet18, tmp_path / "x.pth")
    code, text = cirkd(capsys, action, tmp_path / "x.pth", "--model", "deeplabv3_resnet18")
    assert code == 2
    require_error(text, tmp_path / "x.pth", "15 missing")
    assert f"deeplabv3:resnet18; see `cirkd weights inspect {tmp_path / 'x.pth'}`" in text


def test_inspect_tells_damage_and_advises_no_import(resnet18, tmp_path, capsys):
    torch.save(resnet18, tmp_path / "x.pth")
    assert "cirkd weights import" in cirkd(capsys, "inspect", tmp_path / "x.pth")[1]
    torch.save({**resnet18, "bn1.weight": torch.full((64,), float("nan"))}, tmp_path / "x.pth")
    code, text = cirkd(capsys, "inspect", tmp_path / "x.pth")
    assert code == 0
    assert "1 entries hold NaN or infinity, e.g. bn1.weight" in text
    assert "cirkd weights import" not in text
    code, text = cirkd(capsys, "verify", tmp_path / "x.pth")
    assert code == 2
    assert "it fits" not in text


def test_the_folder_of_an_encoder_means_the_encoder(tmp_path, capsys):
    save_encoder(build_model("fcn:test_resnet", num_classes=2), tmp_path)
    code, text = cirkd(capsys, "inspect", tmp_path)
    assert code == 0
    assert "an encoder of this package" in text
    code, text = cirkd(capsys, "verify", tmp_path)
    assert code == 2
    require_error(text, tmp_path, "encoder", "--model NAME")
    code, text = cirkd(capsys, "verify", tmp_path, "--model", "fcn:test_resnet", "--size", 64, 64)
    assert code == 0
    assert "encoder.safetensors holds an encoder only: the heads are random" in text
    with refuses(tmp_path / "encoder.safetensors", WeightsError, "encoder only"):
        load_model(tmp_path)


def test_inspect_of_our_encoder_says_how_it_is_used(tmp_path, capsys):
    save_encoder(build_model(NAME, num_classes=2), tmp_path)
    _, text = cirkd(capsys, "inspect", tmp_path)
    assert f"--set model.weights={tmp_path / 'encoder.safetensors'}" in text
    assert "cirkd weights import" not in text


def test_a_folder_that_is_no_runs_is_told(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    code, text = cirkd(capsys, "inspect", tmp_path)
    assert code == 2
    require_error(text, tmp_path, "run's folder", "no weights")
    (tmp_path / "x.pth").touch()
    require_error(cirkd(capsys, "verify", tmp_path)[1], tmp_path, "run's folder", "x.pth")
    (tmp_path / "run.yaml").touch()
    require_error(cirkd(capsys, "verify", tmp_path)[1], tmp_path / "student.safetensors", "validates")


@pytest.mark.parametrize("words", [["verify"], ["import"], ["import", "--model", "deeplabv3_mobilenetv2"]])
def test_a_segmentation_network_of_torchvision_is_known_when_refused(words, tmp_path, capsys):
    state = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "x.pth")
    code, text = cirkd(capsys, words[0], tmp_path / "x.pth", *words[1:])
    assert code == 2
    require_error(text, tmp_path / "x.pth", "segmentation network of torchvision")
    assert f"torchvision_model?name=NAME&weights={tmp_path / 'x.pth'}" in text
