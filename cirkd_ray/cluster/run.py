"""Runs on a cluster with their progress shown, as `cirkd train` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cirkd_ray.cluster.capacity import wanted_cpus
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec
from cirkd_ray.report.follow import Follower
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Runner


@contextmanager
def ray_runner() -> Iterator[Runner]:
    """`fit` on the environment's cluster or a local one, with its progress shown here.

    Ray is joined or started by the first run, and left at the end of the block.
    """
    with ExitStack() as session:

        def run(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
            session.enter_context(ray_session(minimum_cpus=wanted_cpus([spec])))
            with Follower(directory, spec.train.steps):
                return fit(spec, directory)

        yield run
