"""Runs without Ray: in this process, or in the ranks that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.spec import ClusterSpec
from cirkd_ray.device import local_device, share_cores
from cirkd_ray.train.distributed import World, broadcast_object, collective_timeout
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import train
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Runner
from cirkd_ray.train.stall import told_where_it_stalls
from cirkd_ray.train.stop import launched_by_torchrun
from cirkd_ray.train.underway import say_now

PATIENCE = timedelta(days=30)
"""How long torchrun's ranks wait for the first one's word: it may wait for another job's teacher."""


def run_local(spec: RunSpec, directory: RunDirectory, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Train in this process, or in this rank of an existing process group."""
    world, heartbeat = World.current(rank_device(spec.cluster.device)), Heartbeat()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), spec.data.workers)
    reporter = LocalReporter(
        directory.checkpoints, spec.train.keep_checkpoints, spec.cluster.async_checkpoints
    )
    say = partial(say_now, directory=directory, listeners=listeners, world=world)
    with told_where_it_stalls(heartbeat, say):
        return train(spec, world, directory, reporter, listeners, heartbeat=heartbeat)


def rank_device(setting: str) -> torch.device:
    """`local_device`; of several GPUs, each of torchrun's ranks takes its own."""
    device = local_device(setting)
    if device.type == "cuda" and launched_by_torchrun():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def led_by_first_rank(cluster: ClusterSpec, run: Runner) -> Iterator[Runner | None]:
    """Lets torchrun's first rank decide what is run, and all ranks run it; without torchrun, just `run`.

    Yields on the first rank what runs a recipe on all ranks. The others take part until the first leaves the
    block; they get None then.

    Args:
        cluster: where it runs.
        run: `run_local`, with this rank's listeners.
    """
    if not launched_by_torchrun():
        yield run
        return
    place = rank_device(cluster.device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    timeout = collective_timeout(cluster.storage_timeout)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timeout)
    world = World.current(place)
    # On the CPU: collectives on GPUs, like those of training, give up after minutes.
    words = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(words, dist.ProcessGroup)  # all ranks are in it
    running = False

    def lead(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
        nonlocal running
        broadcast_object((spec.to_dict(), str(directory.path)), world, words)
        running = True
        result = run(spec, directory)
        running = False
        return result

    try:
        if world.is_main:
            try:
                yield lead
            finally:
                if not running:  # else the others end with the same error
                    broadcast_object(None, world, words)
        else:
            while (told := broadcast_object(None, world, words)) is not None:
                run(from_tree(told[0]), RunDirectory(told[1]))
            yield None
    finally:
        dist.destroy_process_group()
