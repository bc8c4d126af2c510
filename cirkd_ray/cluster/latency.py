"""How long a student takes for one validation image, on what a worker of its run would have."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cirkd_ray.cluster.measuring import on_a_worker
from cirkd_ray.cluster.resources import plan_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.files import write_text
from cirkd_ray.sweep.space import SweepSpec

if TYPE_CHECKING:
    import torch

MOST_STUDENTS = 32
LATENCY = "latency"
"""The folder of a sweep that keeps what was measured."""


def measured_figures(sweep: SweepSpec) -> bool:
    """Whether a metric of the sweep is known of a student before it is trained."""
    return bool({"latency_ms", "parameters"} & set(sweep.metric))


def measure_students(sweep: SweepSpec, base: RunSpec, folder: Path) -> None:
    """Measure the students that a sweep can draw, while nothing trains beside them.

    Where there is no end to them, or are many, each is measured when a trial draws it.
    """
    if not measured_figures(sweep):
        return
    shaping = {path: p for path, p in sweep.parameters.items() if Role.STUDENT in role_of(path)}
    values = [p.values() for p in shaping.values()]
    if math.prod(len(v) for v in values) > MOST_STUDENTS or not all(values):
        return
    for chosen in itertools.product(*values):
        settings = {path: p.setting(v) for (path, p), v in zip(shaping.items(), chosen, strict=True)}
        latency_ms(from_tree(apply_overrides(base.to_dict(), settings)), folder)


def latency_ms(spec: RunSpec, folder: Path) -> dict[str, float]:
    """`latency_ms` (median, batch of one) and `parameters` of a recipe's student.

    A network is measured once a sweep, in a task with a worker's CPUs and GPU; `folder` keeps the figures.
    """
    key = {"model": spec.to_dict()["model"], "data": spec.data.name, "settings": spec.data.settings}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = folder / f"{digest}.json"
    if not path.is_file():
        plan = plan_run(spec, ray.cluster_resources())
        measured = on_a_worker(_measure, plan, spec, spec.to_dict())
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**measured, "model": key["model"]}))
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: float(found[name]) for name in ("latency_ms", "parameters")}


def _measure(device: torch.device, tree: dict[str, object]) -> dict[str, float]:
    from cirkd_ray.models.cost import images_per_second
    from cirkd_ray.train.build import build_datasets, build_network

    spec = from_tree(tree)
    _, val = build_datasets(spec)
    model = build_network(spec.model, len(val.classes), "model")
    size = val.load(0).image.shape[:2]
    rate = images_per_second(model, (int(size[0]), int(size[1])), device)
    return {"latency_ms": 1000.0 / rate, "parameters": float(sum(p.numel() for p in model.parameters()))}
