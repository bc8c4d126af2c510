"""Evaluation on Ray workers: the counts of one process, also when a worker is killed on the way."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

from cirkd_ray.data import build_dataset
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.job import EvaluationJob, Evaluator
from cirkd_ray.models import build_model
from cirkd_ray.weights import save_model
from tests.errors import refuses

SIZE = {"height": 32, "width": 48, "val_images": 29}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    classes = build_dataset("shapes", split="val", **SIZE).classes
    save_model(build_model("deeplabv3_mobilenetv2", num_classes=len(classes)), folder, classes=classes)
    return EvaluationJob(model=str(folder), data="shapes", settings=SIZE, device="cpu", boundary=True)


@pytest.mark.ray
def test_workers_give_exactly_the_counts_of_one_process(job, ray_cluster):
    from cirkd_ray.cluster.evaluate import ray_evaluator
    from cirkd_ray.cluster.session import ray_session

    expected, done = Evaluator(job).evaluate(), []
    with ray_session(minimum_cpus=4):
        with refuses("--workers 500", ConfigError, "500 CPUs"), ray_evaluator(job, 500):
            pass
        with ray_evaluator(job, workers=2) as evaluator:
            assert evaluator.subject().images == 29
            same(evaluator.evaluate(on_images=done.append), expected)
            assert [p.name for p in evaluator.pictures([3])] == [expected.names[3]]
    assert sum(done) == 29


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing_and_errors_arrive_as_they_were(job, ray_cluster):
    import ray

    from cirkd_ray.cluster.evaluate import ray_evaluator
    from cirkd_ray.cluster.session import ray_session

    done = []
    with ray_session(minimum_cpus=4):
        with ray_evaluator(job, workers=2) as evaluator:

            def kill_one(images: int) -> None:
                if not done:
                    pid = ray.get(evaluator._workers[0].__ray_call__.remote(lambda _: os.getpid()))
                    os.kill(pid, signal.SIGKILL)
                done.append(images)

            same(evaluator.evaluate(on_images=kill_one), Evaluator(job).evaluate())
        wrong = replace(job, split="tset")
        with refuses("data", ConfigError, "'tset'"), ray_evaluator(wrong, workers=1):
            pass
    assert sum(done) == 29


def same(found, expected):
    assert torch.equal(found.confusion.matrix, expected.confusion.matrix)
    assert torch.equal(found.boundary.iou(), expected.boundary.iou())
    assert (found.per_image == expected.per_image).all()
    assert found.names == expected.names
