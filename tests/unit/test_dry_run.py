"""The dry run: shapes without values, each network once, and notes on what it could not check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cirkd_ray.config import from_tree
from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train import dry_run
from cirkd_ray.train.dry_run import DryRun, check_run
from cirkd_ray.weights.files import read_state
from tests.errors import refuses
from tests.tinyrun import NETWORK, tiny_baseline, tiny_distillation

MEMORY = {"kind": "cirkd_memory", "pixel_memory": 600, "region_memory": 90, "region_keys": 60}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The student's own weights, for the wrong number of classes."""
    torch.save(build_model(**NETWORK, num_classes=3).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def with_weights(path: Path, **settings: Any) -> Any:
    return tiny_baseline(model={**NETWORK, "weights": str(path), **settings})


def test_shapes_are_those_of_the_values_in_every_format(tmp_path: Path, teacher: Path) -> None:
    state, _ = read_state(teacher / "student.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "new.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in (teacher / "student.safetensors", tmp_path / "new.pth", tmp_path / "old.pth"):
        found, others = read_state(path, values=False)
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in state.items()}
        assert others == read_state(path)[1]


@pytest.mark.parametrize("name", ["student.safetensors", "new.pth"])
def test_a_truncated_file_is_refused_by_its_header(name: str, tmp_path: Path, teacher: Path) -> None:
    torch.save(read_state(teacher / "student.safetensors")[0], tmp_path / "new.pth")
    whole = (teacher if name.endswith("s") else tmp_path) / name
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(whole.read_bytes()[:-1000])
    with refuses(cut, WeightsError, "truncated"):
        read_state(cut, values=False)


def test_starting_weights_are_held_against_the_network(weights: Path) -> None:
    with refuses(weights, WeightsError, "shape", "head.classifier", lines=5):
        check_run(with_weights(weights))
    assert check_run(with_weights(weights, reinit_classifier=True)) == ()


def test_values_are_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = build_model(**NETWORK, num_classes=8).state_dict()
    torch.save({k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in state.items()},
               tmp_path / "nan.pth")  # fmt: skip
    assert check_run(with_weights(tmp_path / "nan.pth")) == ()


def test_queues_are_not_drawn_and_each_network_is_built_once(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[SegmentationModel] = []
    original = dry_run.build_network

    def build_network(*args: Any) -> SegmentationModel:
        built.append(original(*args))
        return built[-1]

    def randn(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("a queue is drawn")

    monkeypatch.setattr(dry_run, "build_network", build_network)
    monkeypatch.setattr(torch, "randn", randn)
    losses: tuple[dict[str, Any], ...] = (MEMORY, {"kind": "kd"})
    methods = [tiny_distillation(teacher, distill={"losses": {"m": loss}}) for loss in losses]
    assert check_run(*methods) == ()
    assert len(built) == 1
    assert all(value.is_meta for value in built[0].state_dict().values())


def test_queues_that_do_not_fit_this_machine_are_refused(teacher: Path) -> None:
    large = {**MEMORY, "pixel_memory": 10**9}
    with refuses("distill.losses", ConfigError, "GiB free", "pixel_memory"):
        check_run(tiny_distillation(teacher, distill={"losses": {"m": large}}))


def test_a_backbone_of_one_image_size_is_refused() -> None:
    spec = tiny_baseline(model={"name": "fcn:levit_128", "output_stride": None})
    with refuses("model", ConfigError, "one size"):
        check_run(spec)


def test_a_module_is_built_for_real_and_tried_at_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    forward = ExternalModel.forward
    monkeypatch.setattr(
        ExternalModel, "forward", lambda self, images: tried.append(images.shape) or forward(self, images)
    )
    place = "cirkd_ray.weights.external:torchvision_model?name=lraspp_mobilenet_v3_large"
    spec = tiny_baseline(teacher={"module": place}, distill={"losses": {"kd": {"kind": "kd"}}})
    assert check_run(spec) == ()
    assert tried[0] == (1, 3, 32, 64)


def test_what_is_elsewhere_is_noted_and_the_rest_is_built(teacher: Path, tmp_path: Path) -> None:
    gone = shutil.copytree(teacher, tmp_path / "gone")
    spec = tiny_distillation(gone)
    shutil.rmtree(gone)
    with refuses(gone, WeightsError, "model.json"):
        check_run(spec)
    dry = DryRun(elsewhere=True)
    dry.check(spec)
    (note,) = dry.notes
    assert note.startswith(f"{gone}: ")
    assert note.endswith("the teacher was not checked")
    data = {
        "name": "folder",
        "root": str(tmp_path / "none"),
        "train_split": "a",
        "val_split": "b",
        "crop": [64, 64],
    }
    dry = DryRun(elsewhere=True)
    dry.check(from_tree({**tiny_baseline().to_dict(), "data": data}))
    assert all(note.endswith("its files tell the classes, so that nothing was built") for note in dry.notes)
    assert len(dry.notes) == 1


def test_a_loss_that_needs_values_hides_no_other(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = dry_run.build_losses

    def build_losses(spec: Any, *networks: Any) -> Any:
        if "first" in spec.distill.losses:
            raise NotImplementedError("no values")
        return original(spec, *networks)

    monkeypatch.setattr(dry_run, "build_losses", build_losses)
    losses = {"first": {"kind": "kd"}, "second": {**MEMORY, "pixel_memory": 1}}
    with refuses("distill.losses.second", ConfigError, "pixel_memory: 1"):
        check_run(tiny_distillation(teacher, distill={"losses": losses}))
    losses["second"] = MEMORY
    notes = check_run(tiny_distillation(teacher, distill={"losses": losses}))
    why = "cannot be checked without values (NotImplementedError: no values); the first step will show"
    assert f"distill.losses.first: {why}" in notes
