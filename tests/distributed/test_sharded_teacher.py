"""A teacher whose weights are shared out to the ranks gives the maps, scores and students of a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import ConfigError
from cirkd_ray.models import build_model
from cirkd_ray.train.build import build_run
from cirkd_ray.train.distributed import World
from cirkd_ray.train.frozen import cast_weights
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.sharded import shard
from cirkd_ray.types import SegmentationOutput
from tests.distributed.gloo import run_ranks
from tests.tiny import TinyNet
from tests.tinyrun import figures, tiny_distillation


class Peeking(TinyNet):
    """Reads the weights of a layer that it calls, too."""

    name = "peeking"

    def forward(self, images: torch.Tensor) -> SegmentationOutput:
        found = super().forward(images)
        return found._replace(logits=nn.functional.conv2d(found.feature, self.classifier.weight))


def held(network: nn.Module) -> int:
    """Weights of this rank."""
    return sum(getattr(p, "_local_tensor", p).numel() for p in network.parameters())


def networks() -> dict[str, Any]:
    """How far the maps of networks change, and how many weights a rank holds."""
    world, found = World.current(), {}
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for name, precision in (("segformer_b0", "bf16"), ("deeplabv3:mobilenetv3_small_050", "fp32")):
        torch.manual_seed(0)
        network = build_model(name, num_classes=5).eval().requires_grad_(False)
        cast_weights(network, precision)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            before, weights = network(image), held(network)
            shard(network, world, precision)
            after = network(image)
        found[name] = (torch.equal(before.logits, after.logits), held(network) / weights)
    with pytest.raises(ConfigError, match=r"teacher\.shard: peeking"):
        shard(Peeking().eval().requires_grad_(False), world, "fp32")
    return found


def sharded(spec: RunSpec, shard: bool) -> RunSpec:
    tree = spec.to_dict()
    tree["teacher"]["shard"] = shard
    return from_tree(tree)


def runs(spec: RunSpec, folder: str) -> dict[str, Any]:
    found = networks()
    for way in (False, True):
        directory = RunDirectory(Path(folder) / str(way))
        run_local(sharded(spec, way), directory)
    run = build_run(sharded(spec, True), World.current())
    assert run.teacher is not None
    assert run.shared.sharded
    assert run.shared.recorded is None
    return found


def test_maps_scores_and_students_are_those_of_a_whole_teacher(teacher: Path, tmp_path: Path) -> None:
    train = {"steps": 2, "validate_every": 2, "checkpoint_every": 2, "log_every": 1, "validate_limit": 5}
    spec = tiny_distillation(teacher, train=train)
    made = [RunDirectory(tmp_path / str(way)) for way in (False, True)]
    for way, directory in zip((False, True), made, strict=True):
        directory.create(sharded(spec, way))
    for found in run_ranks(runs, 2, tmp_path, spec, str(tmp_path)):
        for equal, share in found.values():
            assert equal
            assert 0.45 < share < 0.55  # of what is no multiple of two one holds more
    for one, other in zip(figures(made[0]), figures(made[1]), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    whole, parts = (directory.read_result() for directory in made)
    assert whole is not None
    assert parts is not None
    assert parts["teacher"] == pytest.approx(whole["teacher"], rel=1e-4)
