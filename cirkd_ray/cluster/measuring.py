"""Measuring on what a worker of a run would have, in a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from cirkd_ray.cluster.resources import Plan, worker_threads
from cirkd_ray.cluster.stopping import interruptible
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import UserError

T = TypeVar("T")


def on_a_worker(work: Callable[..., T], plan: Plan, spec: RunSpec, *arguments: Any) -> T:
    """What `work(device, *arguments)` returns with a worker's CPUs, threads, GPU and part of its memory.

    Raises:
        UserError: of `work`.
        Stopped: this process was asked to stop.
    """
    task = ray.remote(_work).options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)
    measuring = task.remote(work, worker_threads(plan, spec), plan.gpus, arguments)
    try:
        found: T = interruptible(lambda: ray.get(measuring))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    return found


def of_one_worker(spec: RunSpec, plan: Plan) -> RunSpec:
    """The recipe with one worker, its device and its share of the batch."""
    share = spec.train.model_copy(update={"batch_size": spec.train.batch_size // plan.workers})
    alone = spec.cluster.model_copy(update={"workers": 1, "device": "cuda" if plan.gpus else "cpu"})
    return spec.model_copy(update={"train": share, "cluster": alone})


def _work(work: Callable[..., T], threads: int | None, gpus: float, arguments: tuple[Any, ...]) -> T:
    import torch

    from cirkd_ray.device import bound_memory

    device = torch.device("cuda" if gpus else "cpu")
    if threads:
        torch.set_num_threads(threads)
    bound_memory(device, gpus)
    return work(device, *arguments)
