"""One run on a cluster with its progress shown, as `cirkd train` starts it."""

from __future__ import annotations

from typing import Any

from cirkd_ray.cluster.capacity import wanted_cpus
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.train import fit
from cirkd_ray.config import RunSpec
from cirkd_ray.report.follow import Follower
from cirkd_ray.train.rundir import RunDirectory


def run_on_ray(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
    """`fit` on the environment's cluster or a local one, with its progress shown here."""
    with ray_session(minimum_cpus=wanted_cpus([spec])), Follower(directory, spec.train.steps):
        return fit(spec, directory)
