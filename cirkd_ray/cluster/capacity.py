"""How many runs fit on a cluster at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cirkd_ray.cluster.resources import Plan, check_nodes, plan_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.sweep.space import PAUSING, SweepSpec

HEAD = "node:__internal_head__"
DRIVER_BYTES = 2.2e9
"""What a concurrent trial takes of the head's memory: its actor and its controller import torch."""


@dataclass(frozen=True)
class Capacity:
    """How many runs at a time, and why."""

    count: int
    reason: str


def capacity(plan: Plan, available: Mapping[str, float], head_memory: float, limit: int | None) -> Capacity:
    """How many runs like `plan` fit on `available` resources, at most `limit`, at least one.

    Args:
        plan: what each takes.
        available: the cluster's resources.
        head_memory: bytes on the head, where the runs' drivers live.
        limit: the user's.
    """
    bounds = {
        f"{available.get('CPU', 0):g} CPU / {plan.total_cpus:g}": int(
            available.get("CPU", 0) // plan.total_cpus
        )
    }
    if plan.gpus:
        gpus = plan.workers * plan.gpus
        bounds[f"{available.get('GPU', 0):g} GPU / {gpus}"] = int(available.get("GPU", 0) // gpus)
    bounds[f"{head_memory / 1e9:.1f} GB on the head / {DRIVER_BYTES / 1e9:g}"] = int(
        head_memory // DRIVER_BYTES
    )
    if limit is not None:
        bounds[f"resources.concurrent={limit}"] = limit
    reason = min(bounds, key=lambda key: bounds[key])
    return Capacity(max(1, bounds[reason]), reason)


def cluster_capacity(plan: Plan, limit: int | None = None) -> Capacity:
    """`capacity` of the Ray that this process has joined."""
    head = [node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    memory = head[0]["Resources"].get("memory", 0.0) if head else 0.0
    return capacity(plan, ray.cluster_resources(), memory, limit)


def largest_plan(sweep: SweepSpec, base: RunSpec, available: Mapping[str, float]) -> Plan:
    """What the largest trial takes.

    Raises:
        ConfigError: some trial does not fit the cluster or its batch does not divide; with the arithmetic.
    """
    plans = [plan_run(base, available)]
    for path, parameter in sweep.parameters.items():
        if Role.MACHINE in role_of(path):
            for value in parameter.values() or parameter.extremes():
                tree = apply_overrides(base.to_dict(), {path: parameter.setting(value)})
                plans.append(plan_run(from_tree(tree), available))
    return max(plans, key=lambda plan: (plan.workers * plan.gpus, plan.total_cpus))


def check_places(plan: Plan, spec: RunSpec) -> None:
    """`check_nodes` of the Ray that this process has joined, unless the run may wait for nodes.

    Raises:
        ConfigError: no node has room for a worker, or too few have.
    """
    if not spec.cluster.autoscaling:
        check_nodes(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def driver_resources(sweep: SweepSpec, count: int) -> dict[str, float]:
    """What a trial's own actor takes: nothing but a place on the head.

    Where the scheduler pauses trials, more are under way than run; then that place is what bounds them: as
    small as it can be without admitting one more, because other runs' drivers want a place as well.
    """
    if sweep.scheduler.name not in PAUSING:
        return {"CPU": 0, HEAD: 1e-3}
    share = int(1e4 / (count + 1)) + 1
    return {"CPU": 0, HEAD: max(1, share if share * count <= 1e4 else int(1e4 / count)) / 1e4}


def placed(sweep: SweepSpec, base: RunSpec, plan: Plan) -> RunSpec:
    """The recipe with the places that the sweep planned, so that a trial that is started while a node is away
    waits for it, instead of failing or training elsewhere."""
    tree = base.to_dict()
    tree["cluster"] |= {"device": "cuda" if plan.gpus else "cpu", "autoscaling": True}
    splits_batches = Role.MACHINE | Role.COMPUTES  # over workers, whose number then differs between trials
    if not any(splits_batches in role_of(path) for path in sweep.parameters):
        tree["cluster"]["workers"] = plan.workers
    return from_tree(tree)


def wanted_cpus(specs: Sequence[RunSpec]) -> float:
    """CPUs that a local cluster must offer for each of these runs."""

    def cpus(spec: RunSpec) -> float:
        setting: Any = spec.cluster.cpus_per_worker
        each = 1.0 + spec.data.workers if setting == "auto" else float(setting)
        return each * (1 if spec.cluster.workers == "auto" else spec.cluster.workers)

    return max(map(cpus, specs))
