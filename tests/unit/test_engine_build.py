"""From a recipe to the objects of a rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cirkd_ray.config import TeacherSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.models import build_model
from cirkd_ray.train.batchnorm import SynchronisedBatchNorm, synchronise_batchnorm
from cirkd_ray.train.build import build_run, build_teacher
from cirkd_ray.train.distributed import World
from cirkd_ray.types import CAFFE, ClassSet
from cirkd_ray.weights import save_model
from cirkd_ray.weights.open import open_network
from cirkd_ray.weights.package import numbered_classes
from tests.errors import refuses
from tests.tinyrun import tiny_distillation


def test_batchnorm_is_synchronised_but_in_discriminators(teacher: Path) -> None:
    """A gradient penalty differentiates twice through the discriminator; the others have one derivative."""
    losses = {
        "critic": {"kind": "adversarial", "objective": "wgan-gp", "width": 2},
        "memory": {"kind": "cirkd_memory"},
    }
    distiller = build_run(tiny_distillation(teacher, distill={"losses": losses}), World()).step.distiller
    discriminator = distiller.discriminators()[0][1].discriminator
    names = list(distiller.state_dict())
    synchronise_batchnorm(distiller, 2, World(0, 2, pretended=True))
    assert list(distiller.state_dict()) == names
    for part in (distiller.student, distiller.losses["memory"]):
        norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert all(isinstance(m, SynchronisedBatchNorm) for m in norms)
    assert distiller.discriminators()[0][1].discriminator is discriminator is not None
    kept = [type(m) for m in discriminator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kept == [nn.BatchNorm2d]


NAME = "fcn:test_resnet"
CLASSES = numbered_classes(3)
TURNED = ClassSet(CLASSES.names[::-1], CLASSES.palette)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network whose settings are not the defaults."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = build_model(NAME, num_classes=3, head_channels=8, output_stride=32, dropout=0.3, aux=False)
    model.preprocessing = CAFFE
    save_model(model, folder, CLASSES)
    return folder


def the_teacher(saved: Path, classes: ClassSet = CLASSES, **model: object) -> nn.Module:
    spec = TeacherSpec.model_validate({"weights": str(saved), "model": {"name": NAME, **model}})
    return build_teacher(spec, len(classes), classes)


def test_a_named_teacher_is_what_its_card_says(saved: Path, tmp_path: Path) -> None:
    """Dropout and the auxiliary head change no score, and what is given may be the default."""
    found = the_teacher(saved, head_channels=8, output_stride=32, dropout=0.1, aux=True)
    assert (found.settings["output_stride"], found.preprocessing) == (32, CAFFE)
    save_model(build_model(NAME, num_classes=3), tmp_path, CLASSES)
    width = build_model(NAME, num_classes=3).channels["feature"]
    assert the_teacher(tmp_path, head_channels=width, output_stride=8).settings["head_channels"] is None


def test_a_named_teacher_is_not_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def refusing(*args: object, pretrained: bool = False, **options: object) -> nn.Module:
        assert not pretrained
        return create(*args, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", refusing)
    the_teacher(saved, head_channels=8, output_stride=32, pretrained=True)


@pytest.mark.parametrize(
    ("said", "subject", "facts"),
    [
        ({"name": "fcn:test_resnet.r160_in1k"}, "model", ("fcn:test_resnet", "fcn:test_resnet.r160_in1k")),
        ({"head_channels": 8, "output_stride": 8}, "model.output_stride", ("32", "8")),
        ({"head_channels": 8}, "model.output_stride", ("32", "default")),
        ({"output_stride": 32, "head_channels": 16}, "model.head_channels", ("8", "16")),
        (
            {"output_stride": 32, "head_channels": 8, "preprocessing": "imagenet"},
            "model.preprocessing",
            ("'auto'", "'imagenet'"),
        ),
    ],
)
def test_a_teacher_that_its_card_contradicts_is_refused(
    saved: Path, said: dict, subject: str, facts: tuple[str, str]
) -> None:
    with refuses(f"teacher.{subject}", ConfigError, *facts):
        the_teacher(saved, **said)


def test_classes_in_another_order_are_refused_with_a_named_network_too(saved: Path) -> None:
    with refuses(f"teacher {saved}", ConfigError, "order", "class 0"):
        the_teacher(saved, TURNED, head_channels=8, output_stride=32)
    with refuses(saved, ConfigError, "order", "class 0"):
        open_network(saved, TURNED, name=NAME)


def test_a_named_network_is_evaluated_as_its_card_says(saved: Path, tmp_path: Path) -> None:
    opened = open_network(saved, CLASSES, name=NAME, where="--network")
    model, warnings = opened.model, opened.warnings
    assert (model.settings["output_stride"], model.preprocessing, warnings) == (32, CAFFE, ())
    with refuses("--network", ConfigError, "fcn:test_resnet", "pspnet:test_resnet"):
        open_network(saved, CLASSES, name="pspnet:test_resnet", where="--network")
    bare = build_model(NAME, num_classes=3)
    save_file(bare.state_dict(), tmp_path / "bare.safetensors")
    model = open_network(tmp_path / "bare.safetensors", CLASSES, name=NAME).model
    assert torch.equal(model.head.classifier.weight, bare.head.classifier.weight)
