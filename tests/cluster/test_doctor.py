"""`cirkd doctor` on a cluster: a visit to each node, in the Ray that the tests share."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cirkd_ray.cluster import doctor
from cirkd_ray.doctor import machine
from cirkd_ray.doctor.catalogue import CHECKS
from cirkd_ray.doctor.checks import Level, Question, worst
from tests.tinyrun import tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.usefixtures("ray_cluster")
def test_each_node_is_visited_and_planted_defects_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = doctor.living_nodes()
    twice = [node, replace(node, name="other")]  # as if a second node lay on this machine
    monkeypatch.setattr(doctor, "living_nodes", lambda: twice)
    question = Question(str(tmp_path / "runs"), str(tmp_path / "no"), call="test")
    low = replace(
        next(check for check in CHECKS if check.name == "file limit"), probe=lambda question: {"soft": 64}
    )
    kept = tuple(check for check in CHECKS if check.name in ("packages", "CPUs", "--out", "data root"))
    spec = tiny_baseline(cluster={"workers": 500}, train={"batch_size": 500})
    findings, facts = doctor.visit(question, spec, (*kept, low), clock=lambda: time.time() + 50)
    bad = {found.check: found for found in findings if found.level}
    assert set(bad) >= {"file limit", "data root", "clock", "workers"}
    assert bad["file limit"].nodes == bad["data root"].nodes == (node.name, "other")
    assert "+50.0 s" in next(
        found.text for found in findings if found.check == "clock" and found.nodes == ("other",)
    )
    assert set(facts) == {node.name, "other"}
    assert facts[node.name]["CPUs"]["ray"] >= 4
    assert "--out" not in bad  # each sees what the other wrote
    assert {found.nodes[0] for found in findings if found.check == "network"} == {
        f"{node.name} -> other",
        f"other -> {node.name}",
    }
    assert "packages" not in bad
    assert (
        worst(found for found in findings if found.check == "network") < Level.ERROR
    )  # slow while others run
    assert not (tmp_path / "runs").exists()
    assert machine.file_limit(question)["soft"] > 64


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = doctor.living_nodes()
    monkeypatch.setattr(doctor, "living_nodes", lambda: [replace(node, id="e" * 56)])
    findings, facts = doctor.visit(Question(str(tmp_path), call="test"), None, ())
    assert [(found.check, found.level) for found in findings] == [("node", Level.ERROR)]
    assert not facts
