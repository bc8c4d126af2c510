"""A run whose workers come and go on real nodes: 2 -> 1 -> 2, each step once, the curve of two workers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirkd_ray.config import from_tree
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.paced import paced_run
from tests.cluster.several_nodes import Event, happen
from tests.tinyrun import figures

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, CHECKPOINTS = 1200, 20


def test_a_run_shrinks_and_grows_with_its_nodes(tmp_path: Path) -> None:
    tree = paced_run(STEPS, CHECKPOINTS).to_dict()
    tree["cluster"]["workers"] = {"min": 1, "max": 2}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(from_tree(tree).to_yaml())
    done = happen(recipe, tmp_path, 2, [Event(8, "kill"), Event(20, "grow")])
    directory = RunDirectory(tmp_path / "run")
    log = (directory.path / "log.txt").read_text()
    print(log, done)
    assert done.code == 0, done.text
    assert "4 images a step as workers x micro-batches x images: 2 x 1 x 2; 1 x 2 x 2" in log
    assert "workers: 2 before, 1 now; each takes 2 micro-batches of 2 images a step" in log
    assert "workers: 1 before, 2 now; each takes 1 micro-batch of 2 images a step" in log
    assert "2 workers find a place, 1 run: a checkpoint is written" in log
    grown = [int(step) for step in re.findall(r"continuing at step (\d+)", log)][-1]
    assert grown >= done.steps[1], "growing cost steps"
    assert [row["step"] for row in figures(directory)] == [*range(5, STEPS + 1, 5)]
