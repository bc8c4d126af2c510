"""Where the workers of an evaluation run."""

from __future__ import annotations

import pytest

from cirkd_ray.cluster.evaluate import gpus_per_worker
from cirkd_ray.errors import ConfigError


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
    with pytest.raises(ConfigError, match=r"--workers 4: the cluster has 2 GPUs.*at most 2 .*--device cpu"):
        gpus_per_worker("auto", 4, 2)
