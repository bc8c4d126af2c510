"""What tests share: a trained tiny teacher, and one Ray for all tests that need it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # comparisons between processes need the same order of additions


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Files of tests that import Ray skip where it is not installed: the tests on a GPU do without."""
    report = yield
    missing = importlib.util.find_spec("ray") is None
    if report.failed and missing and "No module named 'ray'" in str(report.longrepr):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "Skipped: needs Ray")
    return report


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none; tests that need Ray come last, and all in one process."""
    import torch

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _ray_only_where_it_is_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray that a test starts by the way would be the one that all later tests get."""
    yield
    ray = sys.modules.get("ray")
    if request.node.get_closest_marker("ray") is None and ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("started Ray; mark it with pytest.mark.ray and use ray_cluster")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny trained teacher."""
    from cirkd_ray.train.local import run_local
    from cirkd_ray.train.rundir import RunDirectory
    from tests.tinyrun import tiny_baseline

    directory = RunDirectory(tmp_path_factory.mktemp("teacher") / "run")
    spec = tiny_baseline(train={"steps": 2, "validate_every": 2}, model={"head_channels": 24})
    directory.create(spec)
    run_local(spec, directory)
    return directory.path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four CPUs; no call, so that a stop that one test asks for is not told to all others."""
    import ray

    from cirkd_ray.cluster.session import joined

    os.environ.pop("RAY_ADDRESS", None)
    with joined(minimum_cpus=4):
        assert ray.cluster_resources()["CPU"] >= 4
        yield
