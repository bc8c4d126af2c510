"""Runs on a cluster with their progress shown, as `cirkd train` starts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cirkd_ray.cluster.capacity import wanted_cpus
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.train import fit, fit_cohort
from cirkd_ray.config import RunSpec
from cirkd_ray.report.follow import Follower
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import Together


@contextmanager
def ray_runner() -> Iterator[Together]:
    """`fit` and `fit_cohort` on the environment's cluster or a local one, with its progress shown here.

    Ray is joined or started by the first run, and left at the end of the block.
    """
    with ExitStack() as session:

        def run(
            runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
        ) -> Sequence[dict[str, Any] | Exception]:
            session.enter_context(ray_session(minimum_cpus=wanted_cpus([runs[0][0]])))
            with Follower(runs[0][1], runs[0][0].train.steps, {s.name: d for s, d in runs[1:]}):
                return [fit(*runs[0])] if len(runs) == 1 else fit_cohort(runs, folder)

        yield run
