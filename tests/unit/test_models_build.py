"""Building networks: names, settings, sizes, initialisation, taps, parameter groups."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.models.blocks import ConvNormAct
from cirkd_ray.models.build import model_names, model_settings, parse_name
from cirkd_ray.models.heads import HEADS, EncoderInfo
from tests.errors import refuses

SMALL = "deeplabv3:test_resnet"


def small(**settings):
    torch.manual_seed(0)
    return build_model(SMALL, num_classes=5, head_channels=16, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "key", "facts"),
    [
        ("deeplabv3_resnet19", {}, "", ["'deeplabv3_resnet18'"]),
        ("deeplab:resnet18", {}, "", ["'deeplab'", "'deeplabv3'"]),
        ("deeplabv3:resnet18x", {}, "", ["timm", "'resnet18x'"]),
        (SMALL, {"drop": 0.1}, ".drop", ["'dropout'"]),
        (SMALL, {"dropout": 1.5}, ".dropout", [1, 1.5]),
        (SMALL, {"output_stride": 4}, ".output_stride", [4]),
        (SMALL, {"head_channels": 0}, ".head_channels", [0]),
        ("deeplabv3:swin_tiny_patch4_window7_224", {"output_stride": 8}, ".output_stride", [8, 32]),
        ("deeplabv3_resnet18", {"pretrained": True}, ".pretrained", ["timm", "'resnet18'"]),
    ],
)
def test_bad_names_and_settings_say_where_and_what(name, settings, key, facts):
    with refuses(f"student{key}", ConfigError, *facts):
        build_model(name, num_classes=5, where="student", **settings)


def test_a_failed_download_is_told_plainly(monkeypatch):
    real = timm.create_model

    def unplugged(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route to host")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", unplugged)
    with refuses("model.pretrained", WeightsError, "'test_resnet'", "ConnectionError"):
        build_model(SMALL, num_classes=2, pretrained=True)


def test_a_network_needs_classes():
    with refuses("model", ConfigError, 0):
        build_model(SMALL, num_classes=0)


@pytest.mark.parametrize("name", model_names())
def test_every_published_name_parses_and_has_settings(name):
    fields = model_settings(name).model_fields
    assert {"output_stride", "drop_path", "aux", "head_channels"} <= fields.keys()
    assert parse_name(name).head in HEADS.names()


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (17, 90)])
def test_any_size_gives_maps_of_the_declared_strides_and_channels(size):
    model = small(aux=True).eval()
    model.taps = frozenset(model.channels) - {"feature"}
    with torch.inference_mode():
        output = model(torch.zeros(2, 3, *size))
    for name, stride in model.strides.items():
        expected = tuple(math.ceil(side / stride) for side in size)
        assert tuple(output.tap(name).shape[-2:]) == expected, name
    for name, channels in model.channels.items():
        assert output.tap(name).shape[1] == channels, name
    assert output.logits.shape[:2] == output.aux.shape[:2] == (2, 5)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride_is_a_setting(stride):
    assert small(output_stride=stride).strides["logits"] == stride


def test_taps_are_only_returned_when_asked_for_and_checked():
    model = small().eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).stages is None
        model.taps = frozenset({"stage2"})
        assert set(model(torch.zeros(1, 3, 32, 32)).stages) == {"stage2"}
    with refuses(SMALL, ConfigError, "'stage9'"):
        model.taps = frozenset({"stage9"})


def test_weights_are_a_function_of_the_seed():
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(1)
    other = build_model(SMALL, num_classes=5, head_channels=16).state_dict()
    assert not torch.equal(first["head.fuse.conv.weight"], other["head.fuse.conv.weight"])


def test_head_starts_as_the_field_does():
    head = small().head
    weight = head.fuse.conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (weight.shape[0] * 9)), rel=0.1)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert torch.equal(head.fuse.norm.weight, torch.ones(16))
    segformer = build_model("segformer:test_resnet", num_classes=5).head
    assert segformer.projections[0].weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_dropout_settings_reach_every_dropout():
    model = small(aux=True, dropout=0.0, aspp_dropout=0.0, aux_dropout=0.0).train()
    rates = [child.p for child in model.modules() if isinstance(child, nn.Dropout)]
    assert rates
    assert set(rates) == {0.0}


def test_drop_path_reaches_the_encoder():
    rates = {
        m.drop_prob
        for m in build_model("segformer_b0", num_classes=2, drop_path=0.3).encoder.modules()
        if type(m).__name__ == "DropPath"
    }
    assert max(rates) == pytest.approx(0.3)


def test_parameter_groups_hold_each_parameter_once():
    model = small(aux=True)
    groups = model.parameter_groups()
    assert [group["name"] for group in groups] == ["encoder", "encoder_no_decay", "head", "head_no_decay"]
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim <= 1 for group in groups if group["name"].endswith("no_decay") for p in group["params"])


def test_position_embeddings_and_tokens_are_spared_from_decay():
    model = build_model("fcn:test_vit", num_classes=2)
    spared = {
        id(p) for group in model.parameter_groups() for p in group["params"] if "no_decay" in group["name"]
    }
    names = [name for name, p in model.named_parameters() if id(p) in spared and p.ndim > 1]
    assert any(name.endswith("pos_embed") for name in names)
    assert all("pos_embed" in name or "token" in name for name in names)


def test_drop_path_of_zero_silences_timms_default():
    noisy, quiet = (
        build_model("fcn:swin_tiny_patch4_window7_224", num_classes=2, drop_path=p) for p in (None, 0.0)
    )
    rates = [
        max(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath")
        for model in (noisy, quiet)
    ]
    assert rates[0] > 0
    assert rates[1] == 0


def test_synchronised_norms_keep_their_activations():
    """timm's conversion, which the engine uses; torch's own loses the activation inside `BatchNormAct2d`."""
    model = build_model("deeplabv3:lcnet_035", num_classes=2, head_channels=8).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images).logits
        assert torch.equal(convert_sync_batchnorm(model)(images).logits, expected)


def test_frozen_parameters_are_in_no_group():
    model = small()
    model.encoder.requires_grad_(False)
    assert [group["name"] for group in model.parameter_groups()] == ["head", "head_no_decay"]


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_one_image_trains_though_its_pool_has_no_statistics(head):
    torch.manual_seed(0)
    model = build_model(f"{head}:test_resnet", num_classes=5, head_channels=16).train()
    model(torch.randn(1, 3, 64, 64)).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_pooled_normalisation_is_the_plain_one_for_two_images():
    block, x = ConvNormAct(3, 4).train(), torch.randn(2, 3, 1, 1)
    expected = torch.relu(nn.functional.batch_norm(block.conv(x), None, None, training=True))
    torch.testing.assert_close(block(x), expected)


def test_deeplab_pool_branch_is_a_resized_constant():
    """The expanded pooled map equals the bilinear resize of the reference."""
    info = EncoderInfo((8,), (8,))
    head = HEADS.build("deeplabv3", {"encoder": info, "num_classes": 2}, {"head_channels": 4}).eval()
    x = torch.randn(1, 8, 5, 7)
    pooled = head.pooled(nn.functional.adaptive_avg_pool2d(x, 1))
    resized = nn.functional.interpolate(pooled, (5, 7), mode="bilinear", align_corners=True)
    torch.testing.assert_close(pooled.expand(-1, -1, 5, 7), resized)
