"""Nodes that go, with and without a notice, or come: the run ends with an undisturbed one's figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirkd_ray.config import RunSpec
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.paced import paced_run
from tests.cluster.several_nodes import Event, happen
from tests.tinyrun import figures

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def losses(directory: RunDirectory) -> list[dict[str, float]]:
    """The figures that BatchNorm's running statistics have no part in."""
    return [{k: v for k, v in row.items() if "/" in k or k == "step"} for row in figures(directory)]


def write(spec: RunSpec, folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(spec.to_yaml())
    return recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The undisturbed run, on nodes of the same kind."""
    folder = tmp_path_factory.mktemp("whole")
    done = happen(
        write(paced_run(400, 400), folder), folder, 2, [Event(2, "add")]
    )  # a node more is no matter
    assert done.code == 0
    log = (folder / "run" / "log.txt").read_text()
    assert "continuing" not in log
    return RunDirectory(folder / "run")


def test_a_drained_node_loses_no_step_before_its_notice(whole: RunDirectory, tmp_path: Path) -> None:
    """Its only checkpoints are those of the notice: `checkpoint_every` is the length of the run."""
    spec = whole.spec().model_copy(
        update={"cluster": whole.spec().cluster.model_copy(update={"max_failures": 0})}
    )
    events = [Event(4, "add"), Event(5, "drain", 0, 12.0)]
    done = happen(write(spec, tmp_path), tmp_path, 2, events)
    directory = RunDirectory(tmp_path / "run")
    log = (directory.path / "log.txt").read_text()
    print(log, done)
    assert done.code == 0, done.text
    assert re.search(
        r"the machine of worker \d will be taken away in \d+ s: a checkpoint is written, of step", log
    )
    assert re.search(r"worker \d on \S+: the machine is taken away; the run goes on elsewhere from", log)
    assert "restart" not in log
    assert losses(directory) == losses(whole)


def test_a_killed_node_costs_nothing_but_time(whole: RunDirectory, tmp_path: Path) -> None:
    spec = whole.spec()
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"checkpoint_every": 10})})
    done = happen(write(spec, tmp_path), tmp_path, 2, [Event(4, "add"), Event(8, "kill")])
    directory = RunDirectory(tmp_path / "run")
    log = (directory.path / "log.txt").read_text()
    print(log, done)
    assert done.code == 0, done.text
    # Which is heard of first, the node's end, its process's or that of its connection, is chance.
    [_] = re.findall(
        r"worker \d on \S+ (died: its (?:node|process) is gone|lost its connection).*; restart 1 of 2", log
    )
    assert losses(directory) == losses(whole)
