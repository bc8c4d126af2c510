"""The global batch over workers that come and go: the arithmetic, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster.capacity import wanted_cpus
from cirkd_ray.cluster.resources import check_nodes, plan_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.workers import ElasticSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.split import for_world, smallest_share, splits
from tests.errors import refuses
from tests.tinyrun import tiny_baseline, tiny_distillation


def elastic(batch: int, low: int, high: int, accumulate: int = 1) -> RunSpec:
    return tiny_baseline(
        train={"batch_size": batch, "accumulate": accumulate},
        cluster={"workers": {"min": low, "max": high}},
    )


def distilled(group: Any, batch: int, high: int, kind: str = "cirkd_minibatch") -> RunSpec:
    losses = {"relation": {"kind": kind, **({} if group is None else {"group": group})}}
    return tiny_distillation(
        Path("teacher"),
        distill={"losses": losses},
        train={"batch_size": batch},
        cluster={"workers": {"min": 1, "max": high}},
    )


def shares(spec: RunSpec) -> dict[int, tuple[int, int]]:
    return {workers: (split.accumulate, split.share) for workers, split in splits(spec).used.items()}


@pytest.mark.parametrize(
    ("batch", "low", "high", "accumulate", "used"),
    [
        (16, 1, 8, 1, {1: (8, 2), 2: (4, 2), 4: (2, 2), 8: (1, 2)}),
        (16, 1, 3, 1, {1: (2, 8), 2: (1, 8)}),
        (12, 1, 4, 1, {1: (4, 3), 2: (2, 3), 3: (2, 2), 4: (1, 3)}),
        (16, 2, 4, 2, {2: (4, 2), 4: (2, 2)}),
        (6, 1, 3, 1, {1: (3, 2), 3: (1, 2)}),  # 2 workers: 3 images each, more than 2 or one at a time
        (3, 1, 3, 1, {1: (3, 1), 3: (1, 1)}),
        (16, 4, 4, 1, {4: (1, 4)}),
    ],
)
def test_fewer_workers_take_more_micro_batches(
    batch: int, low: int, high: int, accumulate: int, used: dict[int, tuple[int, int]]
) -> None:
    spec = elastic(batch, low, high, accumulate)
    assert shares(spec) == used
    assert all(n * parts * share == batch for n, (parts, share) in used.items())
    assert smallest_share(spec) == min(share for _, share in used.values())
    assert for_world(spec, max(used)).train.accumulate == accumulate
    assert for_world(spec, min(used)).train.accumulate == used[min(used)][0]
    assert for_world(spec, high + 1) == spec
    assert for_world(spec, min(used)).train.batch_size == batch


def test_what_is_not_used_is_said_with_the_arithmetic() -> None:
    text = splits(elastic(16, 1, 3)).text()
    assert "16 images a step" in text
    assert "2 x 1 x 8; 1 x 2 x 8" in text
    assert "3 not used: 16 / 3 is no whole number" in text
    assert "2 not used: 3 images a worker divide into no shares" in splits(elastic(6, 1, 3)).text()


def test_groups_of_images_that_are_compared_stay_whole() -> None:
    assert shares(distilled(2, 16, 8)) == {1: (8, 2), 2: (4, 2), 4: (2, 2), 8: (1, 2)}
    assert shares(distilled(4, 16, 8)) == {2: (4, 2), 4: (2, 2), 8: (1, 2)}
    assert shares(distilled("batch", 16, 8)) == {8: (1, 2)}
    assert shares(distilled("rank", 12, 4)) == {1: (4, 3), 2: (2, 3), 4: (1, 3)}
    assert shares(distilled(None, 16, 8, "dist")) == {8: (1, 2)}
    assert "would part what distill.losses.relation compares (4)" in splits(distilled(4, 16, 8)).text()


def test_the_hardest_pixels_of_a_micro_batch_stay_those() -> None:
    tree = {**elastic(16, 1, 8).to_dict(), "task": {"losses": {"hard": {"kind": "ohem"}}}}
    assert shares(from_tree(tree)) == {8: (1, 2)}


def test_members_of_a_cohort_have_one_split() -> None:
    member = distilled("batch", 16, 8)
    assert [*splits(elastic(16, 1, 8), member).used] == [8]
    assert for_world(elastic(16, 1, 8), 4, member).train.accumulate == 1


def test_a_batch_that_no_number_divides() -> None:
    with refuses("train.batch_size", ConfigError, "5 images", "2 to 4"):
        splits(elastic(5, 2, 4))
    with refuses("train.batch_size", ConfigError, "6 images in train.accumulate=4", "1 to 2"):
        splits(elastic(6, 1, 2, 4))


@pytest.mark.parametrize(
    ("workers", "subject", "why"),
    [
        ({"min": 2, "max": 1}, "cluster.workers", "min <= max"),
        ({"min": 0, "max": 1}, "cluster.workers.min", "greater than 0"),
        ({"min": 1}, "cluster.workers.max", "required"),
        ({"min": 1, "max": 2, "step": 1}, "cluster.workers.step", "no such setting"),
        ({"min": "auto", "max": 2}, "cluster.workers.min", "integer"),
    ],
)
def test_a_wrong_range_is_refused(workers: dict[str, Any], subject: str, why: str) -> None:
    with refuses(subject, ConfigError, why):
        tiny_baseline(cluster={"workers": workers})


def test_a_range_survives_being_written() -> None:
    spec = elastic(16, 1, 4)
    assert spec.cluster.workers == ElasticSpec(min=1, max=4)
    assert RunSpec.model_validate(spec.to_dict()) == spec


def test_the_cluster_needs_room_for_the_fewest() -> None:
    spec = elastic(16, 2, 8)
    plan = plan_run(spec, {"CPU": 3})
    assert (plan.sizes, plan.least, plan.workers) == ((2, 4, 8), 2, 8)
    check_nodes(plan, [{"CPU": 1.0}, {"CPU": 1.0}])
    assert wanted_cpus([spec]) == 2
    with refuses("cluster.workers", ConfigError, "2 x 1 CPU"):
        plan_run(spec, {"CPU": 1})
    with refuses("cluster.workers", ConfigError, "2 workers"):
        check_nodes(plan, [{"CPU": 1.0}])
