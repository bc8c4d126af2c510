"""What a run takes of a cluster: workers, and CPUs and GPUs of each."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cirkd_ray.config import RunSpec
from cirkd_ray.config.workers import ElasticSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.split import splits


@dataclass(frozen=True)
class Plan:
    """Resources of one run.

    Attributes:
        workers: of a run whose workers come and go, the most.
        cpus, gpus: of each.
        sizes: of such a run the numbers of workers that are used, the smallest first.
    """

    workers: int
    cpus: float
    gpus: float
    sizes: tuple[int, ...] = ()

    @property
    def least(self) -> int:
        """Workers without which it does not run."""
        return self.sizes[0] if self.sizes else self.workers

    @property
    def spread(self) -> bool:
        """Whether each worker takes a node of its own.

        NCCL refuses two ranks of a run on one GPU, which is where Ray puts parts of GPUs of one node.
        """
        return self.workers > 1 and 0 < self.gpus < 1

    @property
    def total_cpus(self) -> float:
        """CPUs of all workers."""
        return self.workers * self.cpus

    def per_worker(self) -> dict[str, float]:
        """As Ray's `resources_per_worker`."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def cpus_of_worker(spec: RunSpec) -> float:
    """CPUs of one worker: as set, or one and one more for each process of its loader."""
    setting = spec.cluster.cpus_per_worker
    return 1.0 + spec.data.workers if setting == "auto" else float(setting)


def worker_threads(plan: Plan, spec: RunSpec) -> int | None:
    """Threads of a worker; None where the user's environment says it.

    Ray gives a worker a thread a CPU, also for those that its loader processes take.
    """
    return None if "OMP_NUM_THREADS" in os.environ else max(1, int(plan.cpus) - spec.data.workers)


def plan_run(spec: RunSpec, available: Mapping[str, float]) -> Plan:
    """Choose the workers of a run on a cluster with `available` resources in all.

    Raises:
        ConfigError: the run does not fit, or its batch does not divide; with the arithmetic.
    """
    cluster = spec.cluster
    gpus_there, cpus_there = int(available.get("GPU", 0)), float(available.get("CPU", 0))
    if cluster.device == "cuda" and not gpus_there and not cluster.autoscaling:
        raise ConfigError("cluster.device: cuda was asked for, but the cluster has no GPU; use auto or cpu")
    on_gpu = cluster.device == "cuda" or (cluster.device == "auto" and gpus_there > 0)
    cpus = cpus_of_worker(spec)
    share, sizes = spec.train.batch_size // spec.train.accumulate, ()
    if isinstance(cluster.workers, ElasticSpec):
        sizes = tuple(splits(spec).used)
        workers = sizes[-1]
    elif cluster.workers == "auto":
        most = min(2, int(cpus_there // cpus))
        if on_gpu:
            most = gpus_there if cluster.gpus_per_worker >= 1 else 1
            most //= math.ceil(cluster.gpus_per_worker)
        workers = next((n for n in range(max(1, most), 0, -1) if share % n == 0), 1)
    else:
        workers = cluster.workers
    if spec.train.batch_size % (workers * spec.train.accumulate):
        raise ConfigError(
            f"train.batch_size: {spec.train.batch_size} does not divide over cluster.workers={workers} with "
            f"train.accumulate={spec.train.accumulate}; the batch is global, choose a multiple of "
            f"{workers * spec.train.accumulate}"
        )
    plan = Plan(workers, cpus, cluster.gpus_per_worker if on_gpu else 0, sizes)
    if not cluster.autoscaling:
        _check_fits(plan, cpus_there, gpus_there)
    return plan


def check_nodes(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Whether each worker finds a node: what a cluster has in all says nothing of one node.

    Raises:
        ConfigError: too few places, with the arithmetic.
    """
    places = places_on(nodes, plan.cpus, plan.gpus)
    if plan.spread:
        places = sum(places_on([node], plan.cpus, plan.gpus) > 0 for node in nodes)
    if places < plan.least and plan.spread:
        raise ConfigError(
            f"cluster.gpus_per_worker: {plan.gpus:g} with cluster.workers={plan.least}: workers of one run "
            f"cannot share a GPU (NCCL refuses it), so each takes a node of its own, and {places} nodes have "
            "room; take cluster.workers=1, or whole GPUs"
        )
    if places < plan.least:
        raise ConfigError(
            f"cluster.workers: {plan.least} workers of {plan.cpus:g} CPU and {plan.gpus:g} GPU are wanted, "
            f"the {len(nodes)} nodes have room for {places}; lower cluster.workers, data.workers or "
            "cluster.cpus_per_worker"
        )


def places_on(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers of `cpus` CPUs and `gpus` GPUs the nodes have room for, given each one's resources."""
    return sum(
        min(
            int(node.get("CPU", 0.0) // cpus),
            places_on_gpus(node.get("GPU", 0.0), gpus) if gpus else sys.maxsize,
        )
        for node in nodes
    )


def places_on_gpus(there: float, each: float) -> int:
    """How many workers of `each` GPUs so many GPUs have room for: a part is one of a single GPU."""
    return int(there // each) if each >= 1 else int(there) * int(1 / each + 1e-9)


def _check_fits(plan: Plan, cpus: float, gpus: int) -> None:
    if plan.least * plan.cpus > cpus or plan.least * math.ceil(plan.gpus) > gpus:
        needs = f"{plan.least} x {plan.cpus:g} CPU"
        needs += f" and {plan.least} x {plan.gpus:g} GPU" if plan.gpus else ""
        raise ConfigError(
            f"cluster.workers: the run needs {needs}, the cluster has {cpus:g} CPU and {gpus} GPU; lower "
            "cluster.workers or data.workers, or set cluster.autoscaling=true to wait for nodes"
        )
