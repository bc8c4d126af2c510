"""A run's figures as Ray exports them for Prometheus, and the Grafana dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import Any

import pytest
import ray

from cirkd_ray.cluster import prometheus
from cirkd_ray.cluster.prometheus import PrometheusGauges, exported
from cirkd_ray.train.rundir import RunDirectory
from tests.paths import REPO

DASHBOARD = json.loads((REPO / "jobs/grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES += [
    variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if "query" in variable["query"]
]


class FakeGauge:
    """Remembers what it was set to."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, labels: dict[str, str]) -> None:
        self.values[tuple(labels.values())] = value


def test_a_line_of_metrics_sets_the_gauges(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, FakeGauge] = {}
    monkeypatch.setattr(prometheus, "_gauge", lambda name, *rest: made.setdefault(name, FakeGauge()))
    (tmp_path / "sweep.yaml").write_text("")
    gauges = PrometheusGauges(RunDirectory(tmp_path / "trials/t1/g0"))
    gauges.start({"train": {"steps": 20}}, 0)
    line = {
        "step": 10,
        "loss/total": 2.0,
        "loss/kd": 1.5,
        "lr": 0.1,
        "images_per_second": 8.0,
        "data_wait": 0.25,
    }
    gauges.metrics(10, {**line, "gpu_memory_gib": 2.0, "miou": 0.5, "grad_norm": 3.0, "pixel_accuracy": 0.9})
    gauges.checkpoint(10)
    gauges.close("finished")
    one = (tmp_path.name, "t1")
    assert made["cirkd_loss"].values == {(*one, "total"): 2.0, (*one, "kd"): 1.5}
    assert abs(made["cirkd_checkpoint_timestamp_seconds"].values[one] - time.time()) < 60
    found = {name: gauge.values[one] for name, gauge in made.items() if one in gauge.values}
    assert found["cirkd_gpu_memory_bytes"] == 2 * 2**30
    assert (found["cirkd_step"], found["cirkd_steps"], found["cirkd_active"]) == (10, 20, 0)
    assert (found["cirkd_images_per_second"], found["cirkd_data_wait_ratio"], found["cirkd_miou"]) == (
        8,
        0.25,
        0.5,
    )
    assert {f"ray_{name}" for name in made} == exported()


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_has_what_grafana_requires(panel: dict[str, Any]) -> None:
    assert {"id", "title", "type", "gridPos", "datasource", "targets", "fieldConfig", "options"} <= set(panel)
    assert set(panel["gridPos"]) == {"h", "w", "x", "y"}
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]
    assert all(target["expr"] and "legendFormat" in target for target in panel["targets"])
    assert panel["fieldConfig"]["defaults"].get("unit")


def test_the_dashboard_is_one_that_can_be_imported() -> None:
    assert {"title", "uid", "schemaVersion", "time", "refresh", "tags", "templating", "panels"} <= set(
        DASHBOARD
    )
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    taken = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in PANELS}
    assert len(taken) == len(PANELS)
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "run", "trial"}
    for query in QUERIES:
        assert set(re.findall(r"\$([a-z]\w*)", query)) <= names


def test_the_dashboard_asks_only_for_what_is_exported_and_for_all_of_it() -> None:
    asked = {name for query in QUERIES for name in re.findall(r"\bray_cirkd_\w+", query)}
    assert asked == exported()
    assert all("ray_cirkd_" in query for query in QUERIES)
    labels = {label for query in QUERIES for label in re.findall(r"(\w+)\s*=~", query)}
    assert labels == {"run", "trial"}


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_sees_the_gauges(tmp_path: Any) -> None:
    class Main:
        def tell(self) -> None:
            self.gauges = PrometheusGauges(RunDirectory(tmp_path / "seen"))
            self.gauges.start({"train": {"steps": 7}}, 0)
            self.gauges.metrics(3, {"step": 3, "loss/kd": 1.5})

    actor = ray.remote(Main).options(num_cpus=0).remote()
    ray.get(actor.tell.remote())
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    end = time.monotonic() + 120
    while len(found) < 3 and time.monotonic() < end:
        time.sleep(1)
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if line.startswith("ray_cirkd_") and 'run="seen"' in line:
                name = line.partition("{")[0] + (":kd" if 'term="kd"' in line else "")
                found[name] = float(line.rpartition(" ")[2])
    ray.kill(actor)
    assert found["ray_cirkd_loss:kd"] == 1.5
    assert found["ray_cirkd_step"] == 3
    assert found["ray_cirkd_steps"] == 7
