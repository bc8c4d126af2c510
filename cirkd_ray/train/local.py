"""Runs without Ray: in this process, or in the ranks that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.spec import ClusterSpec
from cirkd_ray.device import bound_memory, local_device, share_cores
from cirkd_ray.remote.copies import address, addressed, copy_of
from cirkd_ray.train.distributed import World, broadcast_object, collective_timeout
from cirkd_ray.train.entry import Ended, Entry
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import train_cohort
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import Together
from cirkd_ray.train.stall import told_where_it_stalls
from cirkd_ray.train.stop import launched_by_torchrun
from cirkd_ray.train.underway import say_now

PATIENCE = timedelta(days=30)
"""How long torchrun's ranks wait for the first one's word: it may wait for another job's teacher."""


def run_local(spec: RunSpec, directory: RunDirectory, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Train in this process, or in this rank of an existing process group.

    Raises:
        Exception: as of `loop.train`.
    """
    (result,) = run_together([(spec, directory)], [listeners])
    assert isinstance(result, dict)
    return result


def run_together(
    runs: Sequence[tuple[RunSpec, RunDirectory]], listeners: Sequence[Sequence[Listener]]
) -> list[Ended]:
    """Train runs that share batches and a teacher, each with its listeners: how each ended.

    Raises:
        Exception: what ended a single run, or all of them.
    """
    cluster = runs[0][0].cluster
    world = World.current(rank_device(cluster.device))
    bound_memory(world.device, cluster.gpus_per_worker)
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), runs[0][0].data.workers)
    entries = []
    for (spec, directory), following in zip(runs, listeners, strict=True):
        keep = spec.train.keep_checkpoints
        reporter = LocalReporter(directory.checkpoints, keep, cluster.async_checkpoints)
        entries.append(Entry(spec, directory, reporter, following))
    heartbeat = Heartbeat()

    def say(text: str) -> None:
        for entry in entries:
            say_now(text, entry.directory, entry.listeners, world)

    with told_where_it_stalls(heartbeat, say):
        ended = train_cohort(entries, world, heartbeat=heartbeat)
    if len(ended) == 1 and isinstance(ended[0], Exception):
        raise ended[0]
    return ended


def rank_device(setting: str) -> torch.device:
    """`local_device`; of several GPUs, each of torchrun's ranks takes its own."""
    device = local_device(setting)
    if device.type == "cuda" and launched_by_torchrun():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def led_by_first_rank(cluster: ClusterSpec, run: Together) -> Iterator[Together | None]:
    """Lets torchrun's first rank decide what is run, and all ranks run it; without torchrun, just `run`.

    Yields on the first rank what runs recipes on all ranks. The others take part until the first leaves the
    block; they get None then.

    Args:
        cluster: where it runs.
        run: runs recipes in this rank.
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

    def lead(
        runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
    ) -> Sequence[dict[str, Any] | Exception]:
        nonlocal running
        told = [(addressed(spec.to_dict()), address(directory.path)) for spec, directory in runs]
        broadcast_object((told, address(folder)), world, words)
        running = True
        results = run(runs, folder)
        running = False
        return results

    try:
        if world.is_main:
            try:
                yield lead
            finally:
                if not running:  # else the others end with the same error
                    broadcast_object(None, world, words)
        else:
            while (told := broadcast_object(None, world, words)) is not None:
                runs, folder = told
                run([(from_tree(tree), RunDirectory(copy_of(path))) for tree, path in runs], copy_of(folder))
            yield None
    finally:
        dist.destroy_process_group()
