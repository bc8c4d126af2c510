"""`python -m cirkd_ray` is the `cirkd` command."""

from cirkd_ray.cli import run_and_leave

run_and_leave()
