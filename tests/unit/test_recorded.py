"""A recorded network returns what the network returns, however its convolutions run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cirkd_ray.models import build_model
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train import recorded
from cirkd_ray.train.frozen import cast_weights, freeze
from cirkd_ray.train.recorded import SIZES, Recorded, apart
from cirkd_ray.train.shared import SharedForward

CPU = torch.device("cpu")
JOINED = {"deeplabv3_resnet18": 26, "pspnet_mobilenetv2": 5, "upernet_resnet18": 31, "segformer_b0": 1}
"""ReLUs of convolutions, of which each takes its convolution along."""


class Kernels:
    """In the place of cuDNN: the same values without an operation in place, and a count of calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faster: bool = True) -> None:
        self.calls = 0
        monkeypatch.setattr(torch, "cudnn_convolution_relu", self.relu)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", self.add_relu)
        monkeypatch.setattr(recorded, "quickest", lambda work, device: float((work.func is apart) is faster))

    def relu(self, x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        self.calls += 1
        *where, groups = geometry
        return torch.conv2d(x, weight, bias, *where, groups).relu()

    def add_relu(self, x: Tensor, weight: Tensor, z: Tensor, alpha: float, *rest: Any) -> Tensor:
        self.calls += 1
        bias, *where, groups = rest
        return (torch.conv2d(x, weight, bias, *where, groups) + alpha * z).relu()


def frozen(name: str, precision: str = "fp32") -> SegmentationModel:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).eval()
    model.taps = frozenset({"stage2"})
    freeze(model, [])
    cast_weights(model, precision)
    return model


def maps(output: Any) -> dict[str, Tensor]:
    return {"logits": output.logits, "feature": output.feature, **(output.stages or {})}


def require_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.aux is expected.aux is None
    assert maps(found).keys() == maps(expected).keys()
    for name, value in maps(expected).items():
        assert maps(found)[name].dtype == value.dtype
        torch.testing.assert_close(maps(found)[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", JOINED)
def test_joined_convolutions_give_the_networks_maps(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, model = Kernels(monkeypatch), frozen(name, precision)
    here = Recorded(model, precision)
    plain = SharedForward(model, precision, CPU)
    for seed in range(2):
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
        found = here(images)
        kernels.calls = 0
        require_equal(here(images), plain.teach(images))
        assert kernels.calls == JOINED[name]
        require_equal(found, plain.teach(images))


@pytest.mark.parametrize("fault", ["refused", "wrong", "unset", "slow"])
def test_a_kernel_that_is_no_good_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, model = Kernels(monkeypatch, faster=fault != "slow"), frozen("deeplabv3_resnet18")

    def bad(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
        if fault == "refused":
            raise RuntimeError("no engine")
        right = kernels.relu(x, weight, bias, *geometry)
        return right * {"wrong": 1.1, "unset": float("nan"), "slow": 1.0}[fault]

    monkeypatch.setattr(torch, "cudnn_convolution_relu", bad)
    here, images = Recorded(model, "fp32"), torch.randn(1, 3, 64, 96)
    here(images)
    kernels.calls = 0
    require_equal(here(images), SharedForward(model, "fp32", CPU).teach(images))
    assert kernels.calls == (0 if fault == "slow" else 8)  # those with a sum are as good as ever


class Odd(nn.Module):
    """What may not be joined: a map that is used twice, a sum that spreads, groups; and a sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.two = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.spread, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.twice(images)
        x = torch.relu(x) + x
        x = torch.relu(self.one(images) + self.two(images)) + x  # the only pair
        x = torch.relu(self.spread(x.mean((2, 3), keepdim=True)) + x)
        return {"feature": torch.relu(self.grouped(x))}


class Looking(nn.Module):
    """It looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.convolution(images))
        return {"feature": x if bool(x.sum() > 0) else -x}


def external(module: nn.Module) -> SegmentationModel:
    torch.manual_seed(0)
    model = ExternalModel(module, outputs={"feature": "feature"})
    freeze(model, [])
    return model


def test_only_what_nobody_else_needs_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, model = Kernels(monkeypatch), external(Odd())
    here, images = Recorded(model, "fp32"), torch.randn(2, 3, 16, 24)
    here(images)
    kernels.calls = 0
    found = here(images)
    torch.testing.assert_close(found.feature, SharedForward(model, "fp32", CPU).teach(images).feature)
    assert kernels.calls == 1


def test_a_network_that_looks_at_values_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels, model = Kernels(monkeypatch), external(Looking())
    here = Recorded(model, "fp32")
    with caplog.at_level(logging.WARNING):
        for sign in (1.0, -1.0, 1.0):
            images = sign * torch.ones(1, 3, 16, 24)
            expected = SharedForward(model, "fp32", CPU).teach(images)
            torch.testing.assert_close(here(images).feature, expected.feature, rtol=0, atol=0)
    assert kernels.calls == 0
    assert len([r for r in caplog.records if "teacher" in r.getMessage()]) == 1


def test_each_size_is_recorded_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, model = Kernels(monkeypatch), frozen("segformer_b0")
    here, plain = Recorded(model, "fp32"), SharedForward(model, "fp32", CPU)
    for number in range(1, SIZES + 2):
        images = torch.randn(number, 3, 64, 64)
        here(images)
        kernels.calls = 0
        require_equal(here(images), plain.teach(images))
        assert kernels.calls == (number <= SIZES)
