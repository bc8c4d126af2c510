"""How long a student takes for one validation image, on what a worker of its run would have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ray

from cirkd_ray.cluster.resources import plan_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.engine.rundir import write_atomically


def latency_ms(spec: RunSpec, folder: Path) -> dict[str, float]:
    """`latency_ms` (median, batch of one) and `parameters` of a recipe's student.

    One network is measured once a sweep, in a task with a worker's CPUs and GPU; `folder` remembers.
    """
    key = {"model": spec.to_dict()["model"], "data": spec.data.name, "settings": spec.data.settings}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = folder / f"{digest}.json"
    if not path.is_file():
        plan = plan_run(spec, ray.cluster_resources())
        measured = ray.get(
            ray.remote(_measure)
            .options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)
            .remote(spec.to_dict())
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**measured, "model": key["model"]}))
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: float(found[name]) for name in ("latency_ms", "parameters")}


def _measure(tree: dict[str, object]) -> dict[str, float]:
    import torch

    from cirkd_ray.engine.build import build_datasets, build_network
    from cirkd_ray.models.cost import images_per_second

    spec = from_tree(tree)
    _, val = build_datasets(spec)
    model = build_network(spec.model, len(val.classes), "model")
    size = val.load(0).image.shape[:2]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = images_per_second(model, (int(size[0]), int(size[1])), device)
    return {"latency_ms": 1000.0 / rate, "parameters": float(sum(p.numel() for p in model.parameters()))}
