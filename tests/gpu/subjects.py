"""Devices that a test runs on, and small steps that are built as the training loop builds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cirkd_ray.bench._step_build import Subject, build
from cirkd_ray.config import from_tree
from cirkd_ray.train.distributed import World
from tests.tinyrun import tiny_distillation

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]
ARITHMETIC = [
    pytest.param("cpu", "fp32"),
    pytest.param("cpu", "bf16"),
    *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("fp32", "bf16", "fp16")),
]
"""Every device with the precisions that it has."""
MEMORY = {"pixel_memory": 40, "region_memory": 20, "pixel_keys": 120, "region_keys": 60}


def subject(teacher: Path, device: str, losses: Mapping[str, Any], **changes: Any) -> Subject:
    """A tiny step with these losses; sections of the recipe are updated by keyword."""
    spec = tiny_distillation(teacher, distill={"losses": dict(losses)}, **changes)
    tree = {**spec.to_dict(), "cluster": {"workers": 1, "device": device}}
    return build(from_tree(tree), World(device=torch.device(device)), None)


def run(found: Subject, number: int, micro_batches: int = 1) -> dict[str, Tensor]:
    """Step `number`, on the subject's batch."""
    return found.step(number, [found.shared(found.moved()) for _ in range(micro_batches)])


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Where the host waits for a CUDA device, an error says so."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def copied(module: nn.Module | None) -> list[Tensor]:
    """The module's parameters as they are now."""
    return [] if module is None else [p.detach().clone() for p in module.parameters()]


def moved(module: nn.Module | None, before: list[Tensor]) -> bool:
    """Whether any parameter has changed since `copied`."""
    return any(not torch.equal(a, b) for a, b in zip(copied(module), before, strict=True))
