"""The frozen teacher returns what it returned before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cirkd_ray.losses import DistillationLoss, build_loss
from cirkd_ray.models import build_model
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.models.segmentation import EncoderDecoder, SegmentationModel
from cirkd_ray.train.frozen import cast_weights, freeze
from cirkd_ray.types import SegmentationOutput


def trained(model: SegmentationModel) -> SegmentationModel:
    """The network with norms that are not their first ones, as after training."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.7, 1.3, generator=generator)
    return model.eval()


def loss(kind: str) -> list[DistillationLoss]:
    return [build_loss(kind, student_channels=8, teacher_channels=8, num_classes=5)]


def maps(model: SegmentationModel, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        out: SegmentationOutput = model(images)
    found = {"logits": out.logits, "feature": out.feature, **(out.stages or {})}
    return found if out.aux is None else {**found, "aux": out.aux}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


NAMES = [
    "deeplabv3_resnet18",
    "pspnet_mobilenetv2",
    "deeplabv3_mobilenetv3_small",
    "deeplabv3_mobilevit_xxs",
    "upernet_resnet18",
    "segformer_b0",
]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", NAMES)
def test_the_maps_stay(name: str, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    model = trained(build_model(name, num_classes=5)).to(dtype)
    model.taps = frozenset({"stage2"})
    images = torch.randn(2, 3, 64, 96, dtype=dtype)
    before, count = maps(model, images), norms(model)
    assert freeze(model, loss("dsd")) == count > 0
    assert norms(model) == 0
    after = maps(model, images)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert (after[key] - value).abs().max() <= bound * value.abs().max(), key


def test_only_an_auxiliary_head_that_nobody_reads_is_dropped() -> None:
    for kind, kept in (("kd", False), ("dsd", True)):
        model = build_model("deeplabv3_resnet18", num_classes=5)
        assert isinstance(model, EncoderDecoder)
        freeze(model, loss(kind))
        assert (model.auxiliary is not None) is kept
    tapped = [
        build_loss(
            "kd", student_channels=8, teacher_channels=8, num_classes=5, student_tap="aux", teacher_tap="aux"
        )
    ]
    assert tapped[0].reads_teacher_aux


def test_weights_have_the_compute_type_and_give_what_autocast_gives() -> None:
    torch.manual_seed(0)
    model = trained(build_model("segformer_b0", num_classes=5))
    cast = copy.deepcopy(model)
    freeze(model, loss("kd"))
    freeze(cast, loss("kd"))
    cast_weights(cast, "bf16")
    assert {m.weight.dtype for m in cast.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {
        torch.bfloat16
    }
    assert {m.weight.dtype for m in cast.modules() if isinstance(m, nn.LayerNorm)} == {torch.float32}
    images = torch.randn(1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        for key, value in maps(model, images).items():
            torch.testing.assert_close(maps(cast, images)[key], value, rtol=0, atol=0)


class Untidy(nn.Module):
    """Convolutions whose output is used beside the norm's, whose norm is hooked, and that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.split_norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.plain, self.plain_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.twice, self.twice_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, images: Tensor, both: bool = True) -> dict[str, Tensor]:
        x = self.split(images)
        x = self.split_norm(x) + (x if both else 0)
        x = self.plain_norm(self.plain(x))
        x = self.twice_norm(self.twice(x))
        return {"feature": x + self.twice(x)}


def test_a_network_that_folding_would_change_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = trained(ExternalModel(Untidy(), outputs={"feature": "feature"}))
    images = torch.randn(1, 3, 64, 96)
    before, state = maps(model, images)["feature"], list(model.state_dict())
    assert freeze(model, []) == 0
    assert list(model.state_dict()) == state
    assert torch.equal(maps(model, images)["feature"], before)


def test_a_hooked_norm_and_a_convolution_that_runs_twice_are_left_alone() -> None:
    class Tidy(Untidy):
        def forward(self, images: Tensor, both: bool = False) -> dict[str, Tensor]:
            return super().forward(images, both)

    torch.manual_seed(0)
    model = trained(ExternalModel(Tidy(), outputs={"feature": "feature", "logits": "@plain_norm"}))
    images = torch.randn(1, 3, 64, 96)
    before = maps(model, images)
    assert freeze(model, []) == 1  # of `split`
    for key, value in maps(model, images).items():
        torch.testing.assert_close(value, before[key], rtol=1e-5, atol=1e-5)
