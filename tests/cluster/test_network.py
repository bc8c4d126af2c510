"""A network that is cut for a moment, and for longer: figures of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirkd_ray.cluster.train import fit
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.cluster.lan import permitted, through_cuts
from tests.cluster.paced import paced_run
from tests.tinyrun import figures

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not permitted(), reason="needs network namespaces (unshare, ip)")
def test_a_moment_is_waited_for_and_a_host_that_was_lost_is_taken_back(
    ray_cluster: None, tmp_path: Path
) -> None:
    spec = paced_run(400, 20)
    recipe, whole = tmp_path / "recipe.yaml", RunDirectory(tmp_path / "whole")
    waits = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"autoscaling": True})})
    recipe.write_text(waits.to_yaml())
    open_directory(whole, spec, resume=True)
    fit(spec, whole)
    found = through_cuts(recipe, tmp_path, [(4, 4.0, False), (12, 80.0, True)])
    directory = RunDirectory(tmp_path / "run")
    log = (directory.path / "log.txt").read_text()
    print(log, found)
    assert found["code"] == 0, found["text"]
    assert [cut["restarts"] for cut in found["cuts"]] == [0, 1]
    assert figures(directory) == figures(whole)
