"""On two gloo ranks, too, members of a cohort are the runs that they are alone."""

from __future__ import annotations

from pathlib import Path

from cirkd_ray.errors import TrainingError
from cirkd_ray.train.distributed import World
from cirkd_ray.train.rundir import RunDirectory
from tests.distributed.gloo import run_ranks
from tests.tinyrun import tiny_distillation
from tests.unit.test_cohort import TRAIN, alone, assert_same_run, entry, recipes


def both_ways(teacher: Path, out: Path) -> list[str]:
    """The runs apart and together, with one whose loss is no number; what ended each of the latter."""
    from cirkd_ray.train.loop import train_cohort

    specs = {name: spec for name, spec in recipes(teacher).items() if name != "discriminator"}
    for name, spec in specs.items():
        alone(spec, out / "apart" / name)
    broken = tiny_distillation(teacher, optim={"lr": 1e30, "warmup_steps": 0}, train=TRAIN)
    entries = [entry(spec, out / "together" / name) for name, spec in {"broken": broken, **specs}.items()]
    return [type(ended).__name__ for ended in train_cohort(entries, World.current())]


def test_members_on_two_ranks_are_the_runs_that_they_are_alone(teacher: Path, tmp_path: Path) -> None:
    for ended in run_ranks(both_ways, 2, tmp_path, teacher, tmp_path):
        assert ended == [TrainingError.__name__, "dict", "dict"]
    for name in ("queues", "baseline"):
        pair = [RunDirectory(tmp_path / kind / name) for kind in ("together", "apart")]
        assert_same_run(*pair)
