"""How many runs fit on a cluster at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from cirkd_ray.cluster.resources import Plan, check_nodes, cpus_of_worker, places_on_gpus, plan_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.config.workers import fewest
from cirkd_ray.sweep.space import PAUSING, SweepSpec

HEAD = "node:__internal_head__"
TRIAL_BYTES = 6e8
"""RAM that a trial in a pack takes of the head: its actor."""
DRIVER_BYTES = 2.2e9
"""RAM that a concurrent trial takes of the head: its actor and its controller import torch."""


@dataclass(frozen=True)
class Capacity:
    """How many runs at a time, and why."""

    count: int
    reason: str


def capacity(
    plan: Plan, available: Mapping[str, float], head_bytes: float, limit: int | None, pack: int = 1
) -> Capacity:
    """How many runs, or packs, like `plan` fit on `available` resources, at most `limit`, at least one.

    Args:
        plan: what each takes.
        available: the cluster's resources.
        head_bytes: RAM of the head, where the runs' drivers live.
        limit: the user's.
        pack: trials of a pack.
    """
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    bounds = {f"{cpus:g} CPU / {plan.total_cpus:g}": int(cpus // plan.total_cpus)}
    if plan.gpus:
        places = places_on_gpus(gpus, plan.gpus)
        bounds[f"{gpus:g} GPU / {plan.workers * plan.gpus:g}"] = places // plan.workers
    driver = DRIVER_BYTES + (pack - 1) * TRIAL_BYTES
    bounds[f"{head_bytes / 1e9:.1f} GB on the head / {driver / 1e9:g}"] = int(head_bytes // driver)
    if limit is not None:
        bounds[f"resources.concurrent={limit}"] = limit
    reason = min(bounds, key=lambda key: bounds[key])
    return Capacity(max(1, bounds[reason]), reason)


def cluster_capacity(plan: Plan, limit: int | None = None, pack: int = 1) -> Capacity:
    """`capacity` of the Ray that this process has joined."""
    return capacity(plan, ray.cluster_resources(), head_bytes(), limit, pack)


def head_bytes() -> float:
    """RAM of the head of the Ray that this process has joined; 0 where it does not say."""
    head = [node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    return float(head[0]["Resources"].get("memory", 0.0)) if head else 0.0


def trials_on_head(head_bytes: float, places: int) -> int:
    """How many trials a pack may have, so that the head has room for the processes of all."""
    return max(1, int((head_bytes / places - DRIVER_BYTES) // TRIAL_BYTES) + 1)


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

    A scheduler that pauses trials starts more of them than run at a time. Then the size of a place bounds how
    many run: as small as it can be without admitting one more, because other runs' drivers want a place too.
    """
    if sweep.scheduler.name not in PAUSING:
        return {"CPU": 0, HEAD: 1e-3}
    share = int(1e4 / (count + 1)) + 1
    return {"CPU": 0, HEAD: max(1, share if share * count <= 1e4 else int(1e4 / count)) / 1e4}


def placed(sweep: SweepSpec, base: RunSpec, plan: Plan) -> RunSpec:
    """The recipe with the workers and the device that the sweep planned.

    A trial that starts while a node is away then waits for it, instead of failing or training elsewhere.
    """
    tree = base.to_dict()
    tree["cluster"] |= {"device": "cuda" if plan.gpus else "cpu", "autoscaling": True}
    splits_batches = Role.MACHINE | Role.COMPUTES  # over workers, whose number then differs between trials
    if not any(splits_batches in role_of(path) for path in sweep.parameters):
        tree["cluster"]["workers"] = plan.workers
    return from_tree(tree)


def wanted_cpus(specs: Sequence[RunSpec]) -> float:
    """CPUs that a new local cluster must offer, so that each of these runs fits."""
    return max(fewest(spec.cluster.workers) * cpus_of_worker(spec) for spec in specs)
