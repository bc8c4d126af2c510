"""A run in this process alone, without Ray: `cirkd train --local`, and tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cirkd_ray.config import RunSpec
from cirkd_ray.device import local_device, share_cores
from cirkd_ray.train.distributed import World
from cirkd_ray.train.loop import train
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory


def run_local(spec: RunSpec, directory: RunDirectory, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Train in this process, or in this rank of an existing process group (torchrun)."""
    world = World.current(local_device(spec.cluster.device))
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), spec.data.workers)
    return train(
        spec, world, directory, LocalReporter(directory.checkpoints, spec.train.keep_checkpoints), listeners
    )
