"""`cirkd models` and the counts behind it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from cirkd_ray.cli import main
from cirkd_ray.models import build_model
from cirkd_ray.models.cost import cost, crop_of, images_per_second
from tests.errors import require_error


def naive_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Outputs times inputs of each convolution and linear layer, by hooks."""
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += (
                output.numel()
                * module.in_channels
                // module.groups
                * module.kernel_size[0]
                * module.kernel_size[1]
            )
        else:
            total += output.numel() * module.in_features

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, *size))
    return total


@pytest.mark.parametrize("name", ["deeplabv3_mobilenetv2", "pspnet_resnet18"])
def test_multiply_adds_equal_a_naive_count(name):
    model = build_model(name, num_classes=19)
    model.auxiliary = None
    assert cost(name, (64, 96)).multiply_adds == naive_multiply_adds(model, (64, 96))


def test_attention_is_counted_too():
    """All layers of SegFormer by hooks, and the two products of every attention by hand."""
    model = build_model("segformer_b0", num_classes=19)
    layers = naive_multiply_adds(model, (64, 64))
    attention = 0
    for side, width, reduction in zip((16, 8, 4, 2), (32, 64, 160, 256), (8, 4, 2, 1), strict=True):
        queries, keys = side**2, (side // reduction) ** 2
        attention += 2 * (2 * queries * keys * width)  # two blocks a stage; q k and attention v
    assert cost("segformer_b0", (64, 64)).multiply_adds == layers + attention


def test_parameters_with_and_without_the_auxiliary_head():
    counted = cost("deeplabv3_resnet18", (64, 64))
    assert counted.training_parameters == 13607974
    auxiliary = 64 * 256 * 9 + 2 * 64 + 19 * 64 + 19
    assert counted.parameters == 13607974 - auxiliary
    assert (counted.feature, counted.strides) == (128, (8, 4, 8, 8, 8))


def test_crops():
    assert crop_of("segformer_b0") == crop_of("segformer:resnet18") == (1024, 1024)
    assert crop_of("deeplabv3_resnet18") == (512, 1024)


def test_command_prints_every_published_network(capsys):
    assert main(["models", "segformer_b0", "upernet", "fcn:lcnet_035", "--size", "64", "64", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["segformer_b0", "upernet_resnet18", "fcn:lcnet_035"]
    assert main(["models", "deeplabv3_mobilenetv2"]) == 0
    assert "3.23 M" in capsys.readouterr().out


def test_command_measures(capsys):
    words = ["models", "fcn:lcnet_035", "--size", "32", "32", "--bench", "--json", "--device", "cpu"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)[0]["images_per_second"] > 0


def test_unknown_names_are_users_errors(capsys):
    assert main(["models", "deeplabv4"]) == 2
    require_error(capsys.readouterr().err, "deeplabv4", "deeplabv3_resnet18")
    assert main(["models", "fcn:resnet18x"]) == 2
    require_error(capsys.readouterr().err, "model", "timm", "'resnet18x'")


@pytest.mark.parametrize(
    ("words", "subject", "facts"),
    [
        (("--size", "0", "0"), "--size", [1, 0]),
        (("--size", "-5", "8"), "--size", [1, -5]),
        (("--bench", "--batch", "0"), "--batch", [1, 0]),
        (("--classes", "0"), "model", ["class", 0]),
    ],
)
def test_numbers_that_mean_nothing_are_users_errors(words, subject, facts, capsys):
    assert main(["models", "fcn:lcnet_035", *words]) == 2
    require_error(capsys.readouterr().err, subject, *facts)


def test_speed_counts_images_not_batches(monkeypatch):
    """On a clock that only the network moves: ten milliseconds a forward."""
    now = [0.0]
    monkeypatch.setattr("cirkd_ray.models.cost.time.perf_counter", lambda: now[0])

    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            now[0] += 0.01
            return images

    one, four = (images_per_second(Slow(), (8, 8), torch.device("cpu"), batch=n, seconds=0.1) for n in (1, 4))
    assert one == pytest.approx(100)
    assert four == pytest.approx(400)
