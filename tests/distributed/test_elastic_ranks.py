"""A run whose workers go 2 -> 1 -> 2 is the run of two: each image once, the same curve, the same queues.

BatchNorm has fixed statistics: in training its running ones are each rank's own on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cirkd_ray.config import RunSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.data.sampler import sample_index
from cirkd_ray.train import loop
from cirkd_ray.train.agreement import StopAgreement
from cirkd_ray.train.checkpoint import newest_checkpoint, read_checkpoint
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped
from tests.distributed.gloo import run_ranks
from tests.tinyrun import SCENES, figures, tiny_distillation

STEPS, BATCH, CHANGES = 8, 4, (3, 6)


def part(spec: RunSpec, path: str, stop_at: int = STEPS) -> list[int]:
    """A run up to a step, from where it is; the images that this rank saw."""
    seen: list[int] = []
    batches, train = loop.training_batches, Distiller.train

    def recorded(*args: Any) -> Iterator[DeviceBatch]:
        for batch in batches(*args):
            seen.extend(batch.indices.tolist())
            yield batch

    def without_norms(self: Distiller, mode: bool = True) -> Distiller:
        train(self, mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_batches", recorded)
        patch.setattr(Distiller, "train", without_norms)
        patch.setattr(StopAgreement, "__call__", lambda self, step: step == stop_at)
        try:
            run_local(spec, RunDirectory(path))
        except Stopped:
            assert stop_at < STEPS
    return seen


def fixed_and_first_part(spec: RunSpec, fixed: str, elastic: str) -> tuple[list[int], list[int]]:
    return part(spec, fixed), part(spec, elastic, CHANGES[0])


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(RunDirectory(folder).checkpoints, lambda text: None)
    assert newest is not None
    state = read_checkpoint(newest)
    found = {**state["student"], **state["losses"]}
    assert any("queue" in name for name in found)
    return {name: value for name, value in found.items() if value.is_floating_point()}


def test_two_one_two_workers_follow_two_workers(teacher: Path, tmp_path: Path) -> None:
    cadence = {"steps": STEPS, "batch_size": BATCH, "log_every": 1}
    rare = {"validate_every": STEPS, "checkpoint_every": STEPS, "pictures": 0}
    spec = tiny_distillation(
        teacher,
        train={**cadence, **rare},
        cluster={"workers": {"min": 1, "max": 2}},
        data={"max_class_share": 1.0},
    )
    fixed, elastic = str(tmp_path / "fixed"), str(tmp_path / "elastic")
    both = run_ranks(fixed_and_first_part, 2, tmp_path, spec, fixed, elastic)
    seen = [image for _, first in both for image in first]
    seen += part(spec, elastic, CHANGES[1])
    seen += [image for last in run_ranks(part, 2, tmp_path, spec, elastic) for image in last]
    images = SCENES["train_images"]
    assert isinstance(images, int)
    numbers = [sample_index(spec.seed, n, images) for n in range(STEPS * BATCH)]
    assert sorted(seen) == sorted(numbers) == sorted(image for whole, _ in both for image in whole)
    log = RunDirectory(elastic).path / "log.txt"
    assert "workers: 2 before, 1 now; each takes 2 micro-batches of 2 images a step" in log.read_text()
    curve, wanted = (figures(RunDirectory(path)) for path in (elastic, fixed))
    assert [row["step"] for row in curve] == [*range(1, STEPS + 1)]
    for mine, theirs in zip(curve, wanted, strict=True):
        for name in (key for key in theirs if key.startswith("loss/") or key == "lr"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), (mine["step"], name)
    for name, value in last_state(Path(fixed)).items():
        found = last_state(Path(elastic))[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
