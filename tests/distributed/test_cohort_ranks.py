"""On two gloo ranks, too, members of a cohort are the runs that they are alone."""

from __future__ import annotations

from pathlib import Path

from cirkd_ray.errors import TrainingError
from cirkd_ray.train.checkpoint import checkpoint_name
from cirkd_ray.train.distributed import World
from cirkd_ray.train.rundir import RunDirectory
from tests.distributed.gloo import run_ranks
from tests.tinyrun import tiny_distillation
from tests.unit.test_cohort import TRAIN, alone, assert_same_run, entry, recipes
from tests.unit.test_cohort_joins import joined


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


def handed_over(teacher: Path, out: Path) -> list[str]:
    """A run that joins another from its checkpoint, in memory, and the same from the disk; how they ended."""
    from cirkd_ray.train import agreement
    from cirkd_ray.train.loop import train

    agreement.INTERVAL = 0.0  # else these few steps are over before the ranks ask each other
    donor = tiny_distillation(teacher, train=TRAIN)
    heir = tiny_distillation(teacher, train=TRAIN, optim={"lr": 0.005})
    given = alone(donor, out / "apart" / "donor").checkpoints / checkpoint_name(2)
    expected = entry(heir, out / "apart" / "heir")
    train(heir, World.current(), expected.directory, expected.reporter, (), given)
    start = out / "donor" / "checkpoints" / given.name
    ended = joined({"donor": donor}, {"heir": heir}, out, 3, resume_from=start)
    return [type(each).__name__ for each in ended.values()]


def test_a_run_that_joins_on_two_ranks_has_the_state_of_its_donor(teacher: Path, tmp_path: Path) -> None:
    for ended in run_ranks(handed_over, 2, tmp_path, teacher, tmp_path):
        assert ended == ["dict", "dict"]
    for name in ("donor", "heir"):
        assert_same_run(RunDirectory(tmp_path / name), RunDirectory(tmp_path / "apart" / name))
