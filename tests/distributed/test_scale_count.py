"""The bytes that `bench scale` counts of pretended ranks are those that two real ones exchange."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.bench._scale_count import Exchanges, counted
from cirkd_ray.config import from_tree
from cirkd_ray.train.batchnorm import synchronise_batchnorm
from cirkd_ray.train.build import build_run
from cirkd_ray.train.distributed import World
from tests.distributed.gloo import run_ranks
from tests.distributed.test_step_ranks import BATCH, steps_of
from tests.tinyrun import tiny_distillation


def really(tree: dict[str, Any]) -> dict[str, Any]:
    """What this rank exchanges in its second step, with synchronised BatchNorm."""
    world, found = World.current(), Exchanges(torch.device("cpu"))
    with found.watching():
        run = build_run(from_tree(tree), world)
        synchronise_batchnorm(run.step.distiller, world.size, world)
        steps_of(run, 1)
        found.begin()
        steps_of(run, 1)
    trained = sum(p.numel() for p in run.step.parameters)
    return {
        "messages": [tuple(m) for m in found.messages],
        "buckets": [n for _, n in found.buckets],
        "trained": trained,
    }


def test_bytes_of_pretended_ranks_are_those_of_real_ones(teacher: Path, tmp_path: Path) -> None:
    spec = tiny_distillation(teacher, train={"batch_size": BATCH}, cluster={"bucket_cap_mb": 0.25})
    for shard in (False, True):
        tree = spec.to_dict()
        tree["distill"]["losses"]["memory"]["shard"] = shard
        messages, buckets = counted(from_tree(tree), 2, BATCH // 2, torch.device("cpu"))
        for found in run_ranks(really, 2, tmp_path, tree) if shard else []:
            assert Counter(map(tuple, messages)) == Counter(found["messages"])
            assert sorted(buckets) == sorted(found["buckets"])
            assert sum(buckets) == 4 * found["trained"]
            assert len(buckets) > 1
        kinds = Counter(m.kind for m in messages)
        assert {"BatchNorm", "queues", "counts"} <= set(kinds)
        operations = {m.operation for m in messages if m.kind == "queues"}
        assert operations == ({"all_to_all", "all_gather"} if shard else {"all_gather"})
    half = spec.model_copy(update={"train": spec.train.model_copy(update={"gradient_compression": "bf16"})})
    assert sum(counted(half, 2, BATCH // 2, torch.device("cpu"))[1]) == sum(buckets) / 2
