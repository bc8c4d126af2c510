"""Parts of GPUs: how many workers they have room for, who may share one, and how memory is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray import device
from cirkd_ray.cluster import train
from cirkd_ray.cluster.capacity import capacity
from cirkd_ray.cluster.resources import Plan, check_nodes, places_on, plan_run
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.rundir import RunDirectory
from tests.errors import refuses
from tests.tinyrun import tiny_baseline

NODE = {"CPU": 16.0, "GPU": 2.0}


def planned(available: dict[str, float], **cluster: Any) -> Plan:
    return plan_run(tiny_baseline(cluster={"device": "auto", "workers": "auto", **cluster}), available)


def test_a_part_of_a_gpu_is_one_worker_and_no_matter_on_cpus() -> None:
    assert planned(NODE, gpus_per_worker=0.25) == Plan(1, 1.0, 0.25)
    assert planned(NODE, gpus_per_worker=0.25).per_worker() == {"CPU": 1.0, "GPU": 0.25}
    assert planned(NODE) == Plan(2, 1.0, 1.0)
    assert planned(NODE, gpus_per_worker=2) == Plan(1, 1.0, 2.0)
    assert planned({"CPU": 16.0}, gpus_per_worker=0.25) == Plan(2, 1.0, 0)
    with refuses("cluster.workers", ConfigError, "2 x 2 GPU", "2 GPU"):
        planned(NODE, gpus_per_worker=2, workers=2)


def test_parts_lie_on_single_gpus() -> None:
    assert [places_on([NODE], 1.0, part) for part in (1, 0.6, 0.5, 0.3, 0.25, 0.1, 0.05)] == [
        2, 2, 4, 6, 8, 16, 16,
    ]  # fmt: skip
    assert places_on([NODE, {"CPU": 16.0}, {"GPU": 2.0}], 1.0, 0.5) == 4


@pytest.mark.parametrize(
    ("plan", "count", "reason"),
    [
        (Plan(1, 1.0, 0.25), 8, "2 GPU / 0.25"),
        (Plan(1, 1.0, 0.6), 2, "2 GPU / 0.6"),
        (Plan(2, 1.0, 0.5), 2, "2 GPU / 1"),
        (Plan(1, 4.0, 0.25), 4, "16 CPU / 4"),
        (Plan(1, 1.0, 2.0), 1, "2 GPU / 2"),
    ],
)
def test_as_many_runs_share_gpus_as_fit(plan: Plan, count: int, reason: str) -> None:
    found = capacity(plan, NODE, 1e12, None)
    assert (found.count, found.reason) == (count, reason)


def test_workers_of_one_run_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned({"CPU": 32.0, "GPU": 4.0}, gpus_per_worker=0.5, workers=2)
    check_nodes(plan, [NODE, NODE])
    with refuses("cluster.gpus_per_worker", ConfigError, 0.5, "cluster.workers=2", "1 nodes"):
        check_nodes(plan, [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}])
    with refuses("cluster.workers", ConfigError, "2 x 0.5 GPU", "1 GPU"):
        planned({"CPU": 32.0, "GPU": 1.0}, gpus_per_worker=0.5, workers=2)
    spec, directory = tiny_baseline(), RunDirectory(tmp_path)
    launch = train.Launch([(spec, directory, None)], directory)
    for found, strategy in ((plan, "STRICT_SPREAD"), (Plan(2, 1.0, 1.0), "PACK"), (Plan(2, 1.0, 0), "PACK")):
        trainer = train.make_trainer(launch, found)
        assert trainer.scaling_config.placement_strategy == strategy
        assert trainer.train_loop_config["gpus"] == found.gpus


@pytest.mark.parametrize("value", [0, -1, 1.5, 0.001])
def test_what_is_no_part_and_no_number_of_gpus_is_refused(value: float) -> None:
    with refuses("cluster.gpus_per_worker", ConfigError):
        tiny_baseline(cluster={"gpus_per_worker": value})


def test_a_space_gives_its_trials_parts() -> None:
    space = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.1, 1]}}}
    spec = SweepSpec.model_validate({**space, "resources": {"gpus_per_worker": 0.5}})
    assert spec.overrides()["cluster.gpus_per_worker"] == 0.5
    assert "cluster.gpus_per_worker" not in SweepSpec.model_validate(space).overrides()


def test_a_process_is_bound_to_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: bounds.append(part)
    )
    gpu = torch.device("cuda")
    for place, part in ((gpu, 1.0), (gpu, 2.0), (torch.device("cpu"), 0.5), (gpu, 0.25)):
        device.bound_memory(place, part)
    assert bounds == [3.5 / 16]  # CUDA's own half a GiB lies beside it
    with refuses("cluster.gpus_per_worker", ConfigError, 0.03, "16 GiB"):
        device.bound_memory(gpu, 0.03)
