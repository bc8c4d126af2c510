"""What the losses find wrong with a recipe before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.composition import recipe_names
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import DistillationLoss, LossInputs, build_loss
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.dry_run import check_run
from cirkd_ray.train.rehearsal import declared_output, rehearse
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import run_recipe
from tests.contract.loss_cases import CLASSES, HEIGHT, KINDS, WIDTH, own_module
from tests.errors import refuses
from tests.tinyrun import NETWORK, SCENES, tiny_baseline, tiny_tree

STRIDE = NETWORK["output_stride"]
SPEC = tiny_baseline(data={**SCENES, "crop": [HEIGHT * STRIDE, WIDTH * STRIDE]})


class Last(DistillationLoss):
    """Notes the maps that it meets; does so only if no loss before it could not run."""

    def __init__(self) -> None:
        super().__init__(student_channels=1, teacher_channels=1, num_classes=2)
        self.seen: list[LossInputs] = []

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        self.seen.append(inputs)
        return {}


@pytest.fixture(scope="module")
def networks() -> tuple[SegmentationModel, SegmentationModel]:
    settings: dict[str, Any] = {"aux": True, "output_stride": STRIDE}
    student, teacher = (
        build_model(NETWORK["name"], num_classes=CLASSES, head_channels=width, **settings)
        for width in (8, 16)
    )
    return student, teacher.eval()


def build(kind: str, networks: tuple[SegmentationModel, SegmentationModel], **settings: Any) -> Any:
    student, teacher = networks
    return build_loss(
        kind,
        student_channels=student.channels,
        teacher_channels=teacher.channels,
        num_classes=CLASSES,
        **{**getattr(own_module(kind), "SETTINGS", {}), **settings},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_runs_without_values_and_keeps_its_own(kind: str, networks: Any) -> None:
    loss, last = build(kind, networks), Last()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert rehearse(SPEC, *networks, {kind: loss, "last": last}) == []
    (inputs,) = last.seen
    assert inputs.student.feature.shape == (2, 8, HEIGHT, WIDTH)
    assert inputs.teacher.feature.shape == (2, 16, HEIGHT, WIDTH)
    for name, value in loss.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, before[name])


def test_declared_maps_are_those_of_the_network(networks: Any) -> None:
    teacher = networks[1]
    teacher.taps = frozenset({"stage1", "stage3"})
    try:
        found, declared = teacher(torch.zeros(2, 3, 50, 70)), declared_output(teacher, 50, 70)
    finally:
        teacher.taps = frozenset()
    for name in ("logits", "aux", "feature", "stage1", "stage3"):
        assert declared.tap(name).shape == found.tap(name).shape, name


def test_what_needs_values_is_told(networks: Any) -> None:
    class Impatient(DistillationLoss):
        def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
            reached.append(True)
            if float(inputs.student.logits.sum()) > 0:
                raise ConfigError("cannot be known yet")
            return {}

    reached: list[bool] = []
    last = Last()
    impatient = Impatient(student_channels=1, teacher_channels=1, num_classes=2)
    (note,) = rehearse(SPEC, *networks, {"impatient": impatient, "last": last})
    assert reached
    assert note.startswith("distill.losses.impatient: cannot be checked without values (")
    assert last.seen  # the losses after it are


@pytest.mark.parametrize("kind", ["cirkd_v2", "cirkd_channel"])
def test_a_length_of_another_crop_is_refused_before_the_teacher_is_trained(kind: str, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(json.dumps(tiny_baseline().to_dict()))
    losses = {"channels": {"kind": kind}}
    spec = tiny_baseline(teacher={"train": str(teacher)}, distill={"losses": losses})

    def runner(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
        raise AssertionError("something was trained")

    with refuses("distill.losses.channels", ConfigError, f"loss {kind!r}", "1 pooled", "length: 1"):
        run_recipe(spec, RunDirectory(tmp_path / "run"), tmp_path, runner)
    assert not (tmp_path / "teachers").exists()


def shipped_losses() -> dict[tuple[int, ...], dict[str, Any]]:
    """The losses of the shipped recipes, each with its settings once, by the crop that they are used on."""
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for name in recipe_names():
        tree = load_tree(name)
        losses = found.setdefault(tuple(tree["data"]["crop"]), {}) if "distill" in tree else {}
        for item in (tree.get("distill") or {"losses": {}})["losses"].values():
            if item is not None and item not in losses.values():
                losses[f"loss{len(losses)}"] = item
    return found


def test_shipped_losses_pass_on_their_crops(teacher: Path) -> None:
    """With drawn scenes and small networks, whose maps are as large as those of the recipes' (1/8)."""
    for crop, losses in shipped_losses().items():
        tree = tiny_tree(
            teacher={"weights": str(teacher)},
            model={"aux": True, "output_stride": 8},
            data={"crop": list(crop)},
            distill={"losses": losses},
        )
        check_run(from_tree(tree))
