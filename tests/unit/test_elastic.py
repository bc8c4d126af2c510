"""When a run takes other workers, and that they write a checkpoint first: without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from cirkd_ray.cluster import elastic
from cirkd_ray.cluster.elastic import Sizes
from cirkd_ray.train.distributed import World
from cirkd_ray.train.requests import SaveOnRequest

THREE = {"a": {"CPU": 2.0}, "b": {"CPU": 1.0}}


class Kept:
    """A `ResizeRequest` in this process."""

    def __init__(self, run: Path) -> None:
        self.asked = self.written = False

    def ask(self) -> None:
        self.asked = True

    def stands(self) -> bool:
        return self.asked

    def met(self) -> None:
        self.asked, self.written = False, True

    def is_met(self) -> bool:
        return self.written

    def withdraw(self) -> None:
        self.asked = self.written = False


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sizes:
    nodes = [{"NodeID": name, "Alive": name != "gone"} for name in ("a", "b", "gone")]
    monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(elastic, "ResizeRequest", Kept)
    monkeypatch.setattr(elastic.pulse, "restarting", lambda run: None)
    resources = {"CPU": 1.0}
    config = ScalingConfig(num_workers=(1, 4), resources_per_worker=resources)
    made = Sizes(config, (1, 2, 4), str(tmp_path))
    monkeypatch.setattr(made, "_get_reserved_resources", lambda: THREE)
    monkeypatch.setattr(
        ElasticScalingPolicy,
        "make_decision_for_running_worker_group",
        lambda self, state, status: ResizeDecision(2, resources),
    )
    return made


def decide(policy: Sizes) -> ScalingDecision:
    return policy.make_decision_for_running_worker_group(SimpleNamespace(num_workers=1), None)


def test_only_numbers_that_are_used_and_only_living_nodes_count(policy: Sizes) -> None:
    assert policy._count_possible_workers(THREE) == 2
    assert policy._count_possible_workers({**THREE, "gone": {"CPU": 5.0}}) == 2
    assert policy._count_possible_workers({"a": {"CPU": 4.0}}) == 4
    assert policy._count_possible_workers({"b": {"CPU": 0.5}}) == 0


def test_workers_are_changed_when_they_have_written_a_checkpoint(policy: Sizes) -> None:
    assert isinstance(decide(policy), NoopDecision)
    assert policy.request.stands()
    assert isinstance(decide(policy), NoopDecision)
    SaveOnRequest(policy.request, World(), lambda: None).act()
    assert decide(policy) == ResizeDecision(2, {"CPU": 1.0})
    assert not policy.request.stands()
    assert not policy.request.is_met()


def test_a_change_that_is_no_longer_wanted_is_dropped(policy: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(policy)
    policy.request.met()
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {"b": {"CPU": 1.0}})
    assert isinstance(decide(policy), NoopDecision)
    assert not policy.request.is_met()


def test_workers_that_write_none_are_not_waited_for_without_end(
    policy: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(policy)
    now = elastic.time.monotonic()
    monkeypatch.setattr(elastic.time, "monotonic", lambda: now + elastic.PATIENCE + 1)
    assert isinstance(decide(policy), ResizeDecision)


def test_a_checkpoint_is_written_where_one_is_asked_for(tmp_path: Path) -> None:
    request, saved = Kept(tmp_path), list[int]()
    duty = SaveOnRequest(request, World(), lambda: saved.append(1))
    assert not duty.due()
    duty.act()
    assert not saved
    request.ask()
    assert duty.due()
    duty.act()
    assert saved == [1]
    assert not duty.due()
