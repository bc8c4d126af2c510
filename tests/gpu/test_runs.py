"""Whole runs on a device: deterministic, resumed bit for bit, compiled, and with loader processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cirkd_ray.config import RunSpec
from cirkd_ray.data import build_dataset
from cirkd_ray.data.loader import Batch, train_loader
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.models.heads.base import HEADS
from cirkd_ray.train.local import run_local, run_together
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from tests.gpu.subjects import DEVICES
from tests.tinyrun import KillAt, Killed, figures, tiny_baseline, tiny_distillation

ENCODERS = {"dpt": "test_vit"}
SPEED = "gpu_memory_gib"
HEAVY = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


def done(spec: RunSpec, path: Path, *listeners: Listener) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    run_local(spec, directory, listeners)
    return directory


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != SPEED} for row in figures(run)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head", HEADS.names())
def test_every_head_is_deterministic_and_resumed_bit_for_bit(
    teacher: Path, head: str, device: str, tmp_path: Path
) -> None:
    spec = tiny_distillation(
        teacher,
        model={"name": f"{head}:{ENCODERS.get(head, 'test_resnet')}", "output_stride": None},
        train={"steps": 4, "validate_every": 4, "deterministic": True, "ema": 0.9, "pictures": 0},
        cluster={"device": device},
    )
    whole = done(spec, tmp_path / "whole")
    with pytest.raises(Killed):  # before the checkpoint of step 4
        done(spec, tmp_path / "resumed", KillAt(4))
    resumed = done(spec, tmp_path / "resumed")
    assert rows(resumed) == rows(whole)
    first, second = (load_file(run.path / "student.safetensors") for run in (whole, resumed))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("device", DEVICES)
def test_a_member_of_a_deterministic_cohort_is_the_run_alone(
    teacher: Path, device: str, tmp_path: Path
) -> None:
    train = {
        "steps": 3,
        "validate_every": 3,
        "deterministic": True,
        "ema": 0.9,
        "pictures": 0,
        "log_every": 1,
    }
    spec = tiny_distillation(teacher, train=train, cluster={"device": device, "workers": 1})
    companion = tiny_baseline(train=train, cluster={"device": device, "workers": 1}, optim={"lr": 0.1})
    alone, member, other = (RunDirectory(tmp_path / name) for name in ("alone", "member", "other"))
    for directory, recipe in ((alone, spec), (member, spec), (other, companion)):
        open_directory(directory, recipe, resume=True)
    run_local(spec, alone)
    run_together([(companion, other), (spec, member)], [[], []])
    assert torch.backends.cudnn.benchmark is False
    assert rows(member) == rows(alone)
    first, second = (load_file(run.path / "student.safetensors") for run in (alone, member))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("device", HEAVY)
def test_compiled_networks_with_average_and_validation(teacher: Path, device: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"cluster": {"device": device}, "model": {"name": "pspnet:test_resnet"}}
    train = {"steps": 3, "validate_every": 3, "ema": 0.9, "precision": "fp32", "pictures": 0, "log_every": 1}
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        spec = tiny_distillation(teacher, train={**train, "compile": compiled}, **changes)
        found.append(rows(done(spec, tmp_path / str(compiled))))
    for eager, compiled_row in zip(*found, strict=True):
        assert eager.keys() == compiled_row.keys()
        assert compiled_row["loss/total"] == pytest.approx(eager["loss/total"], rel=2e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_loader_processes_hand_over_pinned_batches(device: str) -> None:
    data = build_dataset("shapes", split="train", height=32, width=64, train_images=8)

    def batches(workers: int) -> list[Batch]:
        return list(
            train_loader(
                data,
                TrainTransform(crop=(32, 64)),
                seed=0,
                global_batch=4,
                total_steps=3,
                workers=workers,
                pin_memory=device == "cuda",
            )
        )

    for here, there in zip(batches(0), batches(2), strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.labels, there.labels)
        assert there.images.is_pinned() == there.labels.is_pinned() == (device == "cuda")
