"""How ranks exchange gradients and statistics: settings reach DDP, groups of ranks, sixteen bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cirkd_ray.cluster.resources import plan_run
from cirkd_ray.config import from_tree
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.batchnorm import SynchronisedBatchNorm, synchronise_batchnorm
from cirkd_ray.train.build import build_run
from cirkd_ray.train.distributed import World, neighbours
from tests.distributed.gloo import run_ranks
from tests.distributed.test_step_ranks import steps_of
from tests.errors import refuses
from tests.tinyrun import tiny_baseline, tiny_distillation, tiny_tree


def ddp_of(tree: dict[str, Any]) -> dict[str, Any]:
    """What DDP says of itself, and the terms of the second step."""
    run = build_run(from_tree(tree), World.current())
    ddp = run.step.trained
    assert isinstance(ddp, DistributedDataParallel)
    found = steps_of(run, 2)
    data = ddp._get_ddp_logging_data()
    return {
        "bucket_cap": ddp.bucket_bytes_cap,
        "static": ddp.static_graph,
        "view": ddp.gradient_as_bucket_view,
        "hook": str(data.get("comm_hook", "")),
        "terms": {name: float(value) for name, value in found.items()},
    }


def every_way(trees: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: ddp_of(tree) for name, tree in trees.items()}


def test_settings_reach_ddp_and_leave_figures_as_they_are(teacher: Path, tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {
        "default": {},
        "small": {"bucket_cap_mb": 0.125},
        "static": {"static_graph": True, "gradient_as_bucket_view": False},
    }
    trees = {n: tiny_distillation(teacher, cluster={"workers": 2, **s}).to_dict() for n, s in ways.items()}
    trees["half"] = tiny_distillation(teacher, train={"gradient_compression": "bf16"}).to_dict()
    for found in run_ranks(every_way, 2, tmp_path, trees):
        default = found["default"]
        assert (default["bucket_cap"], default["static"], default["view"]) == (25 * 2**20, False, True)
        assert found["small"]["bucket_cap"] == 2**17
        assert (found["static"]["static"], found["static"]["view"]) == (True, False)
        assert "bf16" in found["half"]["hook"]
        assert "bf16" not in default["hook"]
        for name in ("small", "static"):  # of two ranks every order of additions is the same
            assert found[name]["terms"] == default["terms"]
        half, whole = found["half"]["terms"], default["terms"]
        assert half != whole
        assert half["total"] == pytest.approx(whole["total"], rel=0.05)


def statistics_of_groups() -> dict[str, Any]:
    """Means that four ranks' norms have seen, in groups of two; rank r feeds r."""
    world = World.current()
    run = build_run(tiny_baseline(train={"batch_size": 4}), world)
    distiller = run.step.distiller
    synchronise_batchnorm(distiller, 2, world)
    norms = [m for m in distiller.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, SynchronisedBatchNorm) for norm in norms)
    norm = next(norm for norm in norms if isinstance(norm, SynchronisedBatchNorm))
    assert norm.group is neighbours(2)  # made once
    norm.running_mean.zero_()
    norm.momentum = 1.0
    x = torch.full((2, norm.num_features, 3, 3), float(world.rank), requires_grad=True)
    norm.train()(x).square().sum().backward()
    return {"mean": norm.running_mean[0].item(), "grad": x.grad.abs().sum().item()}


def test_batchnorm_in_groups_of_two_of_four_ranks(tmp_path: Path) -> None:
    found = run_ranks(statistics_of_groups, 4, tmp_path)
    assert [each["mean"] for each in found] == pytest.approx([0.5, 0.5, 2.5, 2.5])


def test_groups_that_do_not_split_the_workers_are_refused_before_a_run() -> None:
    spec = tiny_baseline(
        train={"batch_size": 12, "batchnorm_ranks": 4}, cluster={"workers": 6, "device": "auto"}
    )
    with refuses("train.batchnorm_ranks", ConfigError, 6, 4):
        plan_run(spec, {"CPU": 32, "GPU": 8})
    plan_run(spec, {"CPU": 32})  # on CPUs each keeps its own


def test_a_static_graph_of_several_micro_batches_is_refused() -> None:
    with refuses("cluster.static_graph", ConfigError, "train.accumulate"):
        from_tree(tiny_tree(train={"accumulate": 2}, cluster={"static_graph": True}))
