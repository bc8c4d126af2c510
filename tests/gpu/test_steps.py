"""Whole training steps: nothing waits for the device, everything stays finite, everything moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cirkd_ray.bench._step_build import build
from cirkd_ray.config import from_tree
from cirkd_ray.losses import LOSSES
from cirkd_ray.train.batchnorm import SynchronisedBatchNorm
from cirkd_ray.train.distributed import World
from cirkd_ray.train.step import NEVER
from tests.gpu.subjects import ARITHMETIC, DEVICES, MEMORY, copied, moved, no_waits, run, subject
from tests.tinyrun import tiny_distillation

STEPS = 6
"""Enough for the scale of float16 to come down to where gradients are finite."""
SETTINGS: dict[str, dict[str, Any]] = {
    "af_dcd": {"groups": 8, "pool": 1, "patch": 2},
    "cirkd_channel": {"length": 1},
    "cirkd_memory": MEMORY,
    "cirkd_v2": {**MEMORY, "length": 1},
}
"""Of the losses that are larger than the tiny networks' maps."""


@pytest.mark.parametrize(("device", "precision"), ARITHMETIC)
def test_average_clipping_accumulation_and_discriminators(teacher: Path, device: str, precision: str) -> None:
    losses = {
        "kd": {"kind": "kd"},
        "minibatch": {"kind": "cirkd_minibatch"},
        "memory": {"kind": "cirkd_memory", **MEMORY},
        "adversarial": {"kind": "adversarial"},
    }
    train = {"precision": precision, "ema": 0.9, "accumulate": 2, "batch_size": 4}
    found = subject(teacher, device, losses, train=train, optim={"clip_grad_norm": 1.0, "warmup_steps": 0})
    step = found.step
    ((_, loss),) = step.distiller.discriminators()
    watched = (step.distiller.student, step.average, loss.discriminator)
    before = [copied(module) for module in watched]
    run(found, 0, 2)  # looks at the labels, and chooses kernels
    with no_waits(device):
        for number in range(1, STEPS):
            terms = run(found, number, 2)
        step.watch_weights(STEPS - 1)
    assert {"task", "kd", "minibatch", "adversarial", "total", "grad_norm"} <= terms.keys()
    assert {name: int(at) for name, at in step.nonfinite.first.items() if at != NEVER} == {}
    assert all(moved(module, values) for module, values in zip(watched, before, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", LOSSES.names())
def test_no_loss_waits_in_a_whole_step(teacher: Path, kind: str, name: str) -> None:
    losses = {"it": {"kind": kind, **SETTINGS.get(kind, {})}}
    model = {"aux": True}  # dsd reads both networks' auxiliary heads
    found = subject(teacher, "cuda", losses, train={"precision": "bf16"}, optim={"name": name}, model=model)
    run(found, 0)
    with no_waits("cuda"):
        terms = run(found, 1)
    assert all(torch.isfinite(value) for value in terms.values())


@pytest.mark.parametrize("device", DEVICES)
def test_one_rank_of_ddp_is_no_rank(teacher: Path, device: str, tmp_path: Path) -> None:
    """DDP, and on CUDA SynchronisedBatchNorm over NCCL, in a group of one: the plain step's weights."""
    train = {"batch_size": 4, "precision": "fp32", "deterministic": True}
    spec = tiny_distillation(teacher, train=train, optim={"warmup_steps": 0})
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    plain = build(from_tree(spec.to_dict()), World(device=place), 4)
    backend, meeting = ("gloo" if device == "cpu" else "nccl"), (tmp_path / "meeting").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
    try:
        # Two by its own account, so that it takes the way of many ranks; what it exchanges is of one.
        ranks = build(from_tree(spec.to_dict()), World(0, 2, place), 4)
        norms = [m for m in ranks.step.distiller.modules() if isinstance(m, SynchronisedBatchNorm)]
        assert bool(norms) == (device == "cuda")
        for found in (plain, ranks):
            torch.manual_seed(0)  # of dropout
            run(found, 0)
            with no_waits(device):
                run(found, 1)
        mine, theirs = (found.step.distiller.student.state_dict() for found in (plain, ranks))
        for key, value in mine.items():
            torch.testing.assert_close(
                theirs[key], value, rtol=2e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
            )
    finally:
        dist.destroy_process_group()
