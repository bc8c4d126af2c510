"""Runs that join a cohort under way are, to the last bit, the runs that they are alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import CheckpointError
from cirkd_ray.train import member
from cirkd_ray.train.checkpoint import checkpoint_name, read_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.entry import Ended, Entry
from cirkd_ray.train.loop import train, train_cohort
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped
from tests.tinyrun import tiny_baseline, tiny_distillation
from tests.unit.test_cohort import TRAIN, alone, assert_same_run, entry, recipes, together

LONG = {**TRAIN, "steps": 8, "checkpoint_every": 2}


class Step(Listener):
    """How far a run is."""

    def __init__(self) -> None:
        self.done = 0

    def metrics(self, step: int, metrics: Any) -> None:
        self.done = step


class Late:
    """Runs that come when another is at a step."""

    def __init__(self, followed: Step, step: int, come: Callable[[], Sequence[Entry]]) -> None:
        self.followed, self.step, self.come, self.taken = followed, step, come, False

    def asked(self) -> bool:
        return not self.taken and self.followed.done >= self.step

    def take(self, world: World) -> Sequence[Entry]:
        self.taken = True
        return self.come()


def joined(
    first: dict[str, RunSpec], late: dict[str, RunSpec], out: Path, step: int = 3, **options: Any
) -> dict[str, Ended]:
    """Runs, and others that join them when the first is at a step; how each ended."""
    followed, told = Step(), dict[str, Ended]()
    entries = [entry(spec, out / name, listeners=[followed], keeps=True) for name, spec in first.items()]

    def come() -> list[Entry]:
        return [entry(spec, out / name, **options) for name, spec in late.items()]

    def tell(entry: Entry, ended: Ended) -> None:
        told[entry.directory.path.name] = ended

    ended = train_cohort(entries, World.current(), joins=Late(followed, step, come), told=tell)
    assert dict(zip([*first, *late], ended, strict=True)) == told
    return told


def test_runs_that_join_are_those_that_they_are_alone(teacher: Path, tmp_path: Path) -> None:
    """One begins anew, one goes on where it was, and the teacher had no losses to deliver for before."""
    specs = recipes(teacher)
    baseline = tiny_baseline(train=LONG)
    other = {"losses": {"dsd": {"kind": "dsd"}}}  # reads the teacher's auxiliary head
    specs["dsd"] = tiny_distillation(teacher, train=TRAIN, distill=other)
    for name, spec in {**specs, "long": baseline}.items():
        alone(spec, tmp_path / "apart" / name)
    together({"queues": specs["queues"]}, tmp_path, queues={"asked_to_stop": lambda: True})
    ended = joined({"long": baseline}, specs, tmp_path)
    for name in (*specs, "long"):
        assert isinstance(ended[name], dict), ended[name]
        assert_same_run(RunDirectory(tmp_path / name), RunDirectory(tmp_path / "apart" / name))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_run_that_starts_from_a_companions_checkpoint_is_the_one_that_starts_from_the_disk(
    teacher: Path, tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = tiny_distillation(teacher, train=LONG)
    heir = tiny_distillation(teacher, train=LONG, optim={"lr": 0.005})
    given = RunDirectory(alone(donor, tmp_path / "apart" / "donor").path).checkpoints / checkpoint_name(4)
    expected = entry(heir, tmp_path / "apart" / "heir")
    train(heir, World.current(), expected.directory, expected.reporter, (), given)
    read: list[Path] = []

    def reads(path: Path) -> dict[str, Any]:
        read.append(path)
        return read_checkpoint(path)

    monkeypatch.setattr(member, "read_checkpoint", reads)
    start = tmp_path / "donor" / "checkpoints" / checkpoint_name(4)
    ended = joined({"donor": donor}, {"heir": heir}, tmp_path, 5 if in_memory else 7, resume_from=start)
    assert [isinstance(each, dict) for each in ended.values()] == [True, True], ended
    assert read == ([] if in_memory else [start])
    for name in ("donor", "heir"):
        assert_same_run(RunDirectory(tmp_path / name), RunDirectory(tmp_path / "apart" / name))


def test_a_run_that_cannot_join_leaves_the_others_as_they_are(teacher: Path, tmp_path: Path) -> None:
    spec = recipes(teacher)["queues"]
    expected = alone(spec, tmp_path / "apart")
    late = RunDirectory(tmp_path / "late")
    late.create(spec)
    (late.checkpoints / checkpoint_name(2)).mkdir(parents=True)  # damaged
    ended = joined({"long": spec}, {"late": spec}, tmp_path, 2)
    assert isinstance(ended["late"], CheckpointError)
    assert_same_run(RunDirectory(tmp_path / "long"), expected)


def test_who_leaves_is_told_of_at_once(teacher: Path, tmp_path: Path) -> None:
    specs = {name: recipes(teacher)[name] for name in ("queues", "baseline")}
    order: list[tuple[str, str]] = []
    leaves = {"queues": {"asked_to_stop": lambda: True}}
    entries = [entry(spec, tmp_path / name, **leaves.get(name, {})) for name, spec in specs.items()]

    def tell(entry: Entry, ended: Ended) -> None:
        order.append((entry.directory.path.name, type(ended).__name__))
        if len(order) == 1:
            assert not (tmp_path / "baseline" / "result.json").exists()

    train_cohort(entries, World(), told=tell)
    assert order == [("queues", Stopped.__name__), ("baseline", "dict")]
