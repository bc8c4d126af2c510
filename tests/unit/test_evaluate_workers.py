"""Where the workers of an evaluation run."""

from __future__ import annotations

import pytest

from cirkd_ray.cluster.evaluate import check_room, gpus_per_worker
from cirkd_ray.errors import ConfigError
from tests.errors import refuses


@pytest.mark.parametrize(
    ("device", "workers", "available", "expected"),
    [
        ("auto", 4, 4, 1),
        ("auto", 4, 0, 0),
        ("auto", 1, 8, 1),
        ("cpu", 4, 2, 0),
        ("cuda", 4, 2, 1),  # refused by the count of what is needed
    ],
)
def test_workers_take_gpus_where_there_are_any(
    device: str, workers: int, available: float, expected: int
) -> None:
    assert gpus_per_worker(device, workers, available) == expected


def test_fewer_gpus_than_workers_are_not_passed_over_in_silence() -> None:
    with refuses("--workers 4", ConfigError, "2 GPUs", "2 workers", "--device cpu"):
        gpus_per_worker("auto", 4, 2)


def test_a_worker_must_fit_on_one_node() -> None:
    """Ray would wait for ever."""
    check_room(2, 5, 0, [{"CPU": 6.0}, {"CPU": 5.0}, {}])
    check_room(3, 2, 1, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 4.0}])
    with refuses("--workers 2", ConfigError, "4 nodes", "room for 0", "--loaders"):
        check_room(2, 5, 0, [{"CPU": 4.0}] * 4)
    with refuses("--workers 3", ConfigError, "2 CPUs", "1 GPUs", "room for 1"):
        check_room(3, 2, 1, [{"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}])
    with refuses("--workers 3", ConfigError, "15 CPUs", "5 CPUs and 0 GPUs", 12):
        check_room(3, 5, 0, [{"CPU": 12.0}])
    with refuses("--workers 1", ConfigError, "1 GPUs", 0):
        check_room(1, 1, 1, [{"CPU": 12.0}])
