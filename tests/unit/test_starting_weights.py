"""What a run's networks start with: said in its log, refused where a trained network is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from cirkd_ray.cli import main
from cirkd_ray.config import TeacherSpec, from_tree
from cirkd_ray.data import build_dataset
from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.train.build import build_run, build_teacher
from cirkd_ray.train.distributed import World
from cirkd_ray.train.local import run_local
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.types import ClassSet
from cirkd_ray.weights import load_model, save_model
from cirkd_ray.weights.open import compare_classes, open_network
from tests.errors import refuses, require_error
from tests.tinyrun import tiny_baseline, tiny_distillation, tiny_tree

NAME = "fcn:test_resnet"
DATA = build_dataset("shapes", split="val", height=32, width=48, val_images=2)
MODEL = {"name": NAME, "head_channels": 8}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """ImageNet weights alone, as timm has them."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def named(names: tuple[str, ...]) -> ClassSet:
    return ClassSet(names, ((0, 0, 0),) * len(names))


def test_a_backbone_is_no_teacher(backbone: Path) -> None:
    spec = TeacherSpec.model_validate({"weights": str(backbone), "model": MODEL})
    with refuses(backbone, WeightsError, "encoder only"):
        build_teacher(spec, 4)


def test_a_teacher_with_a_fresh_classifier_is_refused(tmp_path: Path) -> None:
    torch.save(build_model(NAME, num_classes=3, head_channels=8).state_dict(), tmp_path / "t.pth")
    model = {**MODEL, "reinit_classifier": True}
    spec = TeacherSpec.model_validate({"weights": str(tmp_path / "t.pth"), "model": model})
    with refuses(tmp_path / "t.pth", WeightsError, "number of classes"):
        build_teacher(spec, 4)
    assert build_teacher(spec, 3).num_classes == 3


def test_a_backbone_is_not_evaluated(backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refuses(backbone, WeightsError, "encoder only"):
        open_network(backbone, DATA.classes, name=NAME)
    assert main(["eval", str(backbone), "--network", NAME, "--data", "shapes"]) == 2
    require_error(capsys.readouterr().err, backbone, "encoder only")


def test_a_run_says_what_starts_afresh(backbone: Path, tmp_path: Path) -> None:
    texts: list[str] = []

    class Messages(Listener):
        def message(self, text: str) -> None:
            texts.append(text)

    train = {"steps": 1, "checkpoint_every": 1, "validate_every": 1, "validate_limit": 1, "log_every": 1}
    tree = tiny_tree(train=train)
    tree["model"] = {**MODEL, "weights": str(backbone)}
    directory = RunDirectory(tmp_path / "run")
    spec = from_tree(tree)
    directory.create(spec)
    run_local(spec, directory, (Messages(),))
    loaded, *rest = texts
    assert loaded.startswith("model: ")
    assert f"entries from {backbone} (timm backbone)" in loaded
    assert any("of the heads keep fresh values, e.g. head." in text for text in rest)


def test_without_weights_there_is_nothing_to_say(teacher: Path) -> None:
    assert build_run(tiny_baseline(), World()).notes == ()
    assert build_run(tiny_distillation(teacher), World()).notes == ()


def test_other_names_warn_and_another_order_is_refused() -> None:
    data = named(("sky", "road", "car"))
    assert compare_classes("m", named(("Sky", "ROAD", "car")), data) == ()
    (warning,) = compare_classes("m", named(("sky", "street", "car")), data)
    assert warning == "m: class names of the model and of the data set differ: street / road"
    with refuses("m", ConfigError, "order", "class 1 is 'Car', in the data set 'road'"):
        compare_classes("m", named(("sky", "Car", "Road")), data)


def test_a_teacher_with_classes_in_another_order_is_refused(teacher: Path, tmp_path: Path) -> None:
    loaded = load_model(teacher)
    names = loaded.classes.names
    save_model(loaded.model, tmp_path / "turned", named(names[::-1]))
    with refuses(f"teacher {tmp_path / 'turned'}", ConfigError, "order", "class 0"):
        build_run(tiny_distillation(tmp_path / "turned"), World())
    save_model(loaded.model, tmp_path / "renamed", named(("other", *names[1:])))
    (note,) = build_run(tiny_distillation(tmp_path / "renamed"), World()).notes
    assert note.endswith(f"class names of the model and of the data set differ: other / {names[0]}")
