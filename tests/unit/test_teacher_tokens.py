"""A teacher with features alone, or with tokens, teaches every loss that compares features (case 30)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from cirkd_ray.config import from_tree
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LOSSES
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.train.dry_run import check_run
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import open_directory
from tests.errors import refuses
from tests.tinyrun import tiny_tree

SMALL = {"num_classes": 0, "embed_dim": 32, "depth": 1, "num_heads": 2}
USERS = """
import timm
import torch
from cirkd_ray.models.external import ExternalModel
def vit(num_classes):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=32, depth=1, num_heads=2,
                            dynamic_img_size=True)
    return ExternalModel(net, outputs={"feature": "@norm"}, name="vit")
class Merging(torch.nn.Module):
    def forward(self, images):
        pixels = 8 if images.shape[2] < 64 or images.shape[2] > 96 else 16
        return torch.nn.functional.avg_pool2d(images, pixels).flatten(2).transpose(1, 2)
def merging(num_classes):
    return ExternalModel(Merging(), outputs={"feature": ""}, name="merging")
def scored(num_classes):
    return ExternalModel(vit(num_classes).module, outputs={"feature": "@norm", "logits": "@norm"}, name="vit")
"""
WITH_LOGITS = ("kd", "dkd", "dist", "adversarial", "dsd")
"""Losses that compare class scores unless told otherwise."""


@pytest.fixture(autouse=True)
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token_teachers.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "token_teachers", raising=False)


def spec(loss: dict[str, Any], factory: str = "vit") -> Any:
    teacher = {"module": f"token_teachers:{factory}"}
    train = {"steps": 2, "validate_every": 2, "checkpoint_every": 2}
    data = {"height": 64, "width": 128, "crop": [64, 128]}
    return from_tree(tiny_tree(teacher=teacher, distill={"losses": {"one": loss}}, train=train, data=data))


@pytest.mark.parametrize(
    ("name", "options", "patch"),
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, 16),
        ("vit_tiny_patch16_224", {}, 16),
        ("vit_tiny_patch16_224", {"img_size": (64, 96)}, 16),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "dynamic_img_size": True}, 16),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "dynamic_img_size": True}, 16),
        ("vit_small_patch14_dinov2", {"dynamic_img_size": True}, 14),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 14),
    ],
)
def test_tokens_of_any_vit_are_folded_where_their_patches_lie(
    name: str, options: dict[str, Any], patch: int
) -> None:
    net = timm.create_model(name, **SMALL, **options).eval()
    model = ExternalModel(net, outputs={"feature": "@norm"})
    assert (model.num_classes, model.channels, model.strides) == (0, {"feature": 32}, {"feature": patch})
    images = torch.randn(2, 3, 70, 100)
    with torch.no_grad():
        output = model(images)
        size = model._fitting((70, 100))
        resized = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
        tokens = net.forward_features(resized)[:, net.num_prefix_tokens :]
    rows, columns = size[0] // patch, size[1] // patch
    assert output.feature.shape == (2, 32, rows, columns)
    for row, column in ((0, 0), (1, 2), (rows - 1, columns - 1)):
        assert torch.equal(output.feature[:, :, row, column], tokens[:, row * columns + column])
    assert output.logits.shape == (2, 0, rows, columns)
    with pytest.raises(KeyError, match="no map named 'logits'"):
        output.tap("logits")


def test_maps_with_channels_last_are_turned_round() -> None:
    class Last(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1)

    model = ExternalModel(Last(), outputs={"feature": ""})
    assert (model.channels, model.strides) == ({"feature": 3}, {"feature": 4})
    images = torch.randn(1, 3, 40, 48)
    assert torch.equal(model(images).feature, nn.functional.avg_pool2d(images, 4))


def test_tokens_of_another_grid_are_refused() -> None:
    class Doubled(nn.Module):
        """Keeps its number of tokens, whatever the image's size."""

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(images, (8, 12)).flatten(2).transpose(1, 2)

    with refuses("odd", ConfigError, "no way", "image_size"):
        ExternalModel(Doubled(), outputs={"feature": ""}, name="odd")
    fixed = ExternalModel(Doubled(), outputs={"feature": ""}, image_size=(128, 192))
    assert fixed(torch.rand(1, 3, 64, 64)).feature.shape == (1, 3, 8, 12)


class Bare(nn.Module):
    """A transformer of anybody's: nothing in it says its patch. What is left at an edge is cut or padded."""

    def __init__(self, patch: int, prefix: int, padded: bool = False, only: tuple[int, int] | None = None):
        super().__init__()
        self.patch, self.prefix, self.padded, self.only = patch, prefix, padded, only

    def forward(self, images: Tensor) -> Tensor:
        if self.only is not None and images.shape[2:] != self.only:
            raise ValueError("the position codes are of another size")
        maps = nn.functional.avg_pool2d(images, self.patch, ceil_mode=self.padded)
        return nn.functional.pad(maps.flatten(2).transpose(1, 2), (0, 0, self.prefix, 0))


@pytest.mark.parametrize("size", [(64, 128), (128, 192), (97, 131), (224, 224), (512, 512), (330, 1001)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 5, 17, 50])
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_tokens_are_folded_rightly_at_every_size(
    patch: int, prefix: int, padded: bool, size: tuple[int, int]
) -> None:
    model = ExternalModel(Bare(patch, prefix, padded), outputs={"feature": ""})
    images = torch.randn(1, 3, *size)
    expected = nn.functional.avg_pool2d(images, patch, ceil_mode=padded)
    assert torch.equal(model(images).feature, expected)


def test_what_one_size_leaves_open_is_refused_with_what_to_write() -> None:
    only = (224, 224)
    with refuses("external", ConfigError, "image_size", "multiple"):
        ExternalModel(Bare(14, 1, only=only), outputs={"feature": ""})
    with refuses("external", ConfigError, "257", "several ways", "multiple"):  # 16 x 16 + 1, or 14 x 14 + 61
        ExternalModel(Bare(14, 1, only=only), outputs={"feature": ""}, image_size=only)
    images = torch.randn(1, 3, *only)
    for patch, multiple in ((14, 14), (16, None), (16, 16)):
        module = Bare(patch, 1, only=only)
        model = ExternalModel(module, outputs={"feature": ""}, image_size=only, multiple=multiple)
        assert torch.equal(model(images).feature, nn.functional.avg_pool2d(images, patch))


def test_tokens_of_another_grid_at_the_crop_are_refused_before_anything_starts() -> None:
    with refuses("merging", ConfigError, "64 x 128"):
        check_run(spec({"kind": "fitnet"}, "merging"))


@pytest.mark.parametrize("kind", sorted(set(LOSSES.names()) - set(WITH_LOGITS)))
def test_features_alone_pass_the_dry_run_of_every_loss_of_features(kind: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "af_dcd": {"pool": 1, "patch": 2},
        "cirkd_channel": {"length": 2},
        "cirkd_memory": {"pixel_memory": 40, "region_memory": 20, "pixel_keys": 9, "region_keys": 9},
        "cirkd_v2": {"length": 2},
    }
    notes = check_run(spec({"kind": kind, **sizes.get(kind, {})}))
    assert not [note for note in notes if note.startswith("distill")]


@pytest.mark.parametrize("kind", WITH_LOGITS)
def test_losses_of_logits_are_refused_before_anything_starts(kind: str) -> None:
    with refuses("distill.losses.one", ConfigError) as caught:
        check_run(spec({"kind": kind}))
    assert "logits" in str(caught.value)


def test_a_feature_teacher_trains_a_student(tmp_path: Path) -> None:
    run, found = RunDirectory(tmp_path / "run"), spec({"kind": "fitnet"})
    open_directory(run, found, resume=False)
    result = run_local(found, run)
    assert result["steps"] == 2
    assert "loss/one" in run.read_metrics()[-1]


def test_features_that_pose_as_logits_are_named() -> None:
    with refuses("teacher token_teachers:scored", ConfigError) as caught:
        check_run(spec({"kind": "fitnet"}, "scored"))
    assert "32 classes" in str(caught.value)
