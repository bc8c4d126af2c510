"""Loading weights: every kind that is recognised, and everything that is refused by name."""

from __future__ import annotations

import os
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.types import CAFFE, IMAGENET, ClassSet, Preprocessing
from cirkd_ray.weights import load_model, save_model
from cirkd_ray.weights.loading import convert_reference, load_weights, to_reference
from tests.errors import refuses, require_error
from tests.golden import networks

BGR_TO_ONE = Preprocessing("bgr", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Of mobilevit-xxsmall_8xb128_in1k: `mean=[0, 0, 0], std=[255, 255, 255], to_rgb=False`."""


def small(classes: int = 3, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return build_model("pspnet:test_resnet", num_classes=classes, head_channels=16, aux=True, **settings)


def published(name: str) -> dict[str, torch.Tensor]:
    """Random weights in the release's names and shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = networks.load(name).state
    state = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    return {key: v.long() if key.endswith("num_batches_tracked") else v for key, v in state.items()}


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "wrap", ["plain", "module.", "_orig_mod.", "module._orig_mod.", "state_dict", "model"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_weights_in_any_wrapping(tmp_path, wrap, suffix):
    source, target = small(seed=0), small(seed=1)
    state = source.state_dict()
    if wrap.endswith("."):
        state = {wrap + key: value for key, value in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else state, path)
    report = load_weights(target, path)
    assert equal(target.state_dict(), source.state_dict())
    assert (report.kind, report.loaded, report.source) == ("cirkd_ray", len(state), str(path))


def test_a_run_folder_brings_its_preprocessing(tmp_path):
    source = small()
    source.preprocessing = Preprocessing("bgr", 1.0, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    save_model(source, tmp_path, ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3))
    for path in (tmp_path, tmp_path / "student.safetensors", tmp_path / "model.json"):
        target = small(seed=1)
        load_weights(target, path)
        assert target.preprocessing == source.preprocessing
        assert equal(target.state_dict(), source.state_dict())


def test_another_files_card_is_not_taken(tmp_path):
    save_model(small(), tmp_path, ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3))
    torch.save(small().state_dict(), tmp_path / "other.pth")
    assert load_weights(small(), tmp_path / "other.pth").preprocessing is None


@pytest.mark.parametrize("content", ['{"miou": 0.7}', "[1, 2]", '{"miou": '])
def test_other_json_beside_a_checkpoint_is_no_card(tmp_path, content):
    state = small(seed=1).state_dict()
    torch.save(state, tmp_path / "best.pth")
    (tmp_path / "best.json").write_text(content)
    target = small()
    load_weights(target, tmp_path / "best.pth")
    assert equal(target.state_dict(), state)
    with refuses(tmp_path / "best.pth", WeightsError, "model.json"):
        load_model(tmp_path / "best.pth")


def test_a_card_named_as_its_weights_is_read(tmp_path):
    save_model(small(), tmp_path, ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3))
    (tmp_path / "student.safetensors").rename(tmp_path / "best.safetensors")
    save_file(load_file(tmp_path / "best.safetensors"), tmp_path / "best.safetensors")  # no embedded card
    (tmp_path / "model.json").rename(tmp_path / "best.json")
    assert load_model(tmp_path / "best.safetensors").classes.names == ("a", "b", "c")


def test_a_saved_network_that_is_only_an_encoder_is_refused(tmp_path):
    source = small()
    save_model(source, tmp_path, ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3))
    state = {key: value for key, value in source.state_dict().items() if key.startswith("encoder.")}
    save_file(state, tmp_path / "student.safetensors")
    with refuses(tmp_path / "student.safetensors", WeightsError, "encoder only"):
        load_model(tmp_path)


def test_explicit_preprocessing_wins_over_that_of_the_weights():
    model = build_model("deeplabv3_mobilenetv2", num_classes=19, preprocessing="imagenet")
    load_weights(model, published("deeplabv3_mobilenetv2"))
    assert model.preprocessing == IMAGENET


def test_problems_are_listed_and_nothing_is_loaded():
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value + 1 for key, value in before.items() if key != "head.fuse.conv.weight"}
    state["head.extra"] = torch.zeros(2)
    state["head.fuse.norm.weight"] = torch.zeros(5)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    message = str(caught.value)
    require_error(message, "a state dict", "pspnet:test_resnet")
    assert "1 missing: head.fuse.conv.weight" in message
    assert "1 unexpected: head.extra" in message
    assert "1 of another shape: head.fuse.norm.weight [5] instead of [16]" in message
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_failed_are_refused(value):
    model = small()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["head.fuse.conv.weight"][0, 0, 0, 0] = value
    with refuses("a state dict", WeightsError, "1 entries", "NaN", "head.fuse.conv"):
        load_weights(model, state)


def test_long_lists_are_cut():
    with refuses("a state dict", WeightsError, "missing", "...", lines=5):
        load_weights(small(), {key: v for key, v in small().state_dict().items() if "head" in key})


def test_other_number_of_classes_is_refused_unless_asked_for():
    source, target = small(classes=5, seed=1), small(classes=3)
    fresh = target.head.classifier.weight.clone()
    with refuses("a state dict", WeightsError, "number of classes", "reinit_classifier=true", lines=5):
        load_weights(target, source.state_dict())
    report = load_weights(target, source.state_dict(), reinit_classifier=True)
    assert set(report.reinitialised) == {
        f"{head}.classifier.{key}" for head in ("head", "auxiliary") for key in ("weight", "bias")
    }
    assert torch.equal(target.head.classifier.weight, fresh)
    assert torch.equal(target.head.fuse.conv.weight, source.head.fuse.conv.weight)


def test_reinitialising_does_not_excuse_other_shapes():
    narrow = build_model("pspnet:test_resnet", num_classes=3, head_channels=8, aux=True).state_dict()
    with refuses(
        "a state dict", WeightsError, "head.classifier.weight [3, 8, 1, 1]", "[3, 16, 1, 1]", lines=5
    ):
        load_weights(small(), narrow, reinit_classifier=True)


def test_auxiliary_entries_are_dropped_only_where_there_is_no_such_head():
    without = build_model("deeplabv3_resnet18", num_classes=19, aux=False)
    state = published("deeplabv3_resnet18")
    report = load_weights(without, state)
    assert report.dropped
    assert all(name.startswith("auxiliary.") for name in report.dropped)
    with refuses("a state dict", WeightsError, "missing: auxiliary.fuse", lines=5):
        load_weights(
            build_model("deeplabv3_resnet18", num_classes=19),
            {key: value for key, value in state.items() if not key.startswith("auxlayer.")},
        )


def test_a_wrong_network_is_named():
    model = build_model("pspnet_resnet18", num_classes=19)
    with refuses("a state dict", WeightsError, "pspnet_resnet18", "missing: head.pools", lines=5):
        load_weights(model, published("deeplabv3_resnet18"))


def test_strangers_are_told_from_weights():
    with refuses("a state dict", WeightsError, "pspnet:test_resnet", "a.weight, b.bias"):
        load_weights(small(), {"a.weight": torch.zeros(3), "b.bias": torch.zeros(3)})


def test_counts_of_batches_may_be_absent():
    state = {k: v for k, v in small(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(small(), state).missing == ()


def test_conversion_needs_a_published_network():
    with refuses("fcn:test_resnet", ConfigError, "CIRKD"):
        convert_reference({}, "fcn:test_resnet")
    with refuses("deeplabv3:resnet18", ConfigError, "CIRKD"):
        to_reference({}, "deeplabv3:resnet18")


class Harm:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self):
        return (os.mkdir, ("harm-was-done",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_unrun(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Harm()}, path, _use_new_zipfile_serialization=not legacy)
    with refuses(path, WeightsError, "mkdir", "refused"):
        load_weights(small(), path)
    assert not (tmp_path / "harm-was-done").exists()


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with refuses(tmp_path / "module.pth", WeightsError, "torch.save(model.state_dict(), NEW_PATH)"):
        load_weights(small(), tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("empty.pth", b"", "PyTorch file"),
        ("text.pth", b"<html>404 not found</html>", "PyTorch file"),
        ("plain.pth", pickle.dumps([1, 2]), "PyTorch file"),
        ("junk.safetensors", b"\x08" * 64, "safetensors file"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, fact):
    (tmp_path / name).write_bytes(content)
    with refuses(tmp_path / name, WeightsError, fact):
        load_weights(small(), tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    torch.save(small().state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with refuses(tmp_path / "cut.pth", WeightsError, "truncated", "PyTorch"):
        load_weights(small(), tmp_path / "cut.pth")


def test_a_file_without_tensors_and_an_absent_one(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"lr": 0.1}}, tmp_path / "log.pth")
    with refuses(tmp_path / "log.pth", WeightsError, "tensors"):
        load_weights(small(), tmp_path / "log.pth")
    with refuses(tmp_path / "absent.pth", WeightsError, "model.json"):
        load_weights(small(), tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("model", "golden", "expected"),
    [
        ("deeplabv3_resnet18", "deeplabv3_resnet18", CAFFE),
        ("pspnet_mobilenetv2", "deeplabv3_mobilenetv2", IMAGENET),
        ("deeplabv3_mobilenetv3_small", "pspnet_mobilenetv3_small", IMAGENET),
        ("deeplabv3_mobilevit_xxs", "pspnet_mobilevit_xxs", BGR_TO_ONE),
        ("segformer_b0", "segformer_b0", IMAGENET),
    ],
)
@pytest.mark.parametrize(
    ("prefix", "beside"),
    [("", ""), ("backbone.", "backbone."), pytest.param("backbone.", "head.", id="MMClassification")],
)
def test_the_releases_imagenet_backbones(model, golden, expected, prefix, beside):
    """The same names as inside its networks, with a classification head behind or beside them."""
    whole = published(golden)
    parts = (
        ("pretrained.net.", "pretrained.") if "segformer" not in golden else ("patch_embed", "block", "norm")
    )
    inner = {key: v for key, v in whole.items() if key.startswith(parts)}
    state = {
        prefix + key.removeprefix("pretrained.").removeprefix("net."): value for key, value in inner.items()
    }
    head = "head" if "segformer" in golden else "fc"
    state |= {f"{beside}{head}.weight": torch.zeros(10, 4), f"{beside}{head}.bias": torch.zeros(10)}
    network = build_model(model, num_classes=5)
    report = load_weights(network, state)
    assert report.kind == "reference backbone"
    shown = beside.removeprefix(prefix) + head
    assert report.dropped == (f"{shown}.weight", f"{shown}.bias")
    assert all(name.startswith(("head.", "auxiliary.")) for name in report.fresh)
    assert network.preprocessing == expected
    names = to_reference({k: v for k, v in network.state_dict().items() if k.startswith("encoder.")}, model)
    assert all(torch.equal(names[key], value) for key, value in inner.items())


@pytest.mark.parametrize(
    "backbone",
    ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "pvt_v2_b0", "mobilenetv3_small_050"],
)
def test_timm_backbones(backbone):
    """A whole timm classifier's file gives the encoder the features of that classifier."""
    torch.manual_seed(1)
    whole = timm.create_model(backbone).eval()
    network = build_model(f"segformer:{backbone}", num_classes=2, head_channels=8).eval()
    report = load_weights(network, whole.state_dict())
    assert report.kind == "timm backbone"
    images = torch.randn(1, 3, *whole.pretrained_cfg["input_size"][1:])
    with torch.inference_mode():
        _, expected = whole.forward_intermediates(images, norm=False)
        found = network.encoder(images)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-5)


def test_torchvision_mobilenet_backbone():
    torch.manual_seed(1)
    whole = torchvision.models.mobilenet_v2(weights=None).eval()
    network = build_model("deeplabv3_mobilenetv2", num_classes=2, output_stride=32).eval()
    report = load_weights(network, whole.state_dict())
    assert report.kind == "torchvision backbone"
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.encoder(images)[-1], whole.features[:-1](images))


@pytest.mark.parametrize("size", ["small", "large"])
def test_torchvision_mobilenetv3_backbones(size):
    torch.manual_seed(1)
    whole = getattr(torchvision.models, f"mobilenet_v3_{size}")(weights=None).double().eval()
    for norm in (module for module in whole.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_var, 0.2, 1.0)
    network = build_model(f"fcn:mobilenetv3_{size}_100", num_classes=2, output_stride=32).double().eval()
    report = load_weights(network, whole.state_dict())
    assert report.kind == "torchvision backbone"
    assert all(name.startswith("classifier.") for name in report.dropped)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        found, expected = network.encoder(images)[-1], whole.features(images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    published = build_model(f"deeplabv3_mobilenetv3_{size}", num_classes=2)
    assert load_weights(published, whole.state_dict()).kind == "torchvision backbone"


def test_torchvision_resnet_fits_timms_and_not_the_deep_stem():
    state = torchvision.models.resnet18(weights=None).state_dict()
    network = build_model("fcn:resnet18", num_classes=2, output_stride=32)
    assert load_weights(network, state).kind == "timm backbone"
    assert torch.equal(network.encoder.body.conv1.weight, state["conv1.weight"])
    with refuses("a state dict", WeightsError, "conv1.0.weight [64, 3, 7, 7]", "[64, 3, 3, 3]", lines=5):
        load_weights(build_model("deeplabv3_resnet18", num_classes=2), state)


def test_a_deeper_backbone_is_not_cut_to_fit():
    state = timm.create_model("resnet34").state_dict()
    with refuses("a state dict", WeightsError, "unexpected: layer1.2.conv1.weight", lines=5):
        load_weights(build_model("fcn:resnet18", num_classes=2), state)


def test_an_encoder_of_ours_leaves_the_heads_fresh():
    source, target = small(seed=1), small()
    head = target.head.fuse.conv.weight.clone()
    state = {key: value for key, value in source.state_dict().items() if key.startswith("encoder.")}
    assert load_weights(target, state).kind == "cirkd_ray backbone"
    assert torch.equal(target.encoder.body.conv1[0].weight, source.encoder.body.conv1[0].weight)
    assert torch.equal(target.head.fuse.conv.weight, head)
