"""A run in this process alone, without Ray: `cirkd train --local`, and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.engine.distributed import World
from cirkd_ray.engine.loop import train
from cirkd_ray.engine.reporter import Listener, LocalReporter
from cirkd_ray.engine.rundir import RunDirectory
from cirkd_ray.errors import ConfigError


def local_device(setting: str) -> torch.device:
    """The device of `cluster.device` in this process.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def run_local(spec: RunSpec, directory: RunDirectory, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Train in this process, or in this rank of an existing process group (torchrun)."""
    world = World.current(local_device(spec.cluster.device))
    return train(
        spec, world, directory, LocalReporter(directory.checkpoints, spec.train.keep_checkpoints), listeners
    )
