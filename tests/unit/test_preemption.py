"""Machines about to be taken away: when checkpoints are written, and that they change no figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.train.checkpoint import last_step, list_checkpoints, read_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.loop import Entry, train_cohort
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.preemption import UNKNOWN, Notice, Preemption
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from tests.distributed.gloo import run_ranks
from tests.tinyrun import figures, tiny_baseline, tiny_distillation


class Clock:
    """A duty that is asked every second from `begin` on; notes when it saved, and what was said."""

    def __init__(self, notice: Callable[[float], Notice | None]) -> None:
        self.now, self.saved, self.said, self.looks = 0.0, [], [], 0
        self.duty = Preemption(lambda: notice(self.now), 5.0, self.save, lambda: self.now)

    def save(self, why: str | None) -> None:
        self.saved.append(self.now)
        self.said += [why] if why else []

    def until(self, end: float) -> list[float]:
        while self.now < end:
            if self.duty.due():
                self.looks += 1
                self.duty.act()
            self.now += 1.0
        return self.saved


def test_without_a_notice_it_only_looks() -> None:
    clock = Clock(lambda now: None)
    assert clock.until(60) == []
    assert clock.looks == 11


def test_checkpoints_are_written_at_the_notice_and_at_halves_of_what_is_left() -> None:
    clock = Clock(lambda now: Notice((1,), 130.0) if now >= 8 else None)
    assert clock.until(200) == [10.0, 70.0, 100.0, 115.0, 123.0, 128.0]
    assert clock.said == [
        "WARNING: the machine of worker 1 will be taken away in 120 s: a checkpoint is written"
    ]


def test_a_notice_without_an_end_and_one_of_another_machine() -> None:
    clock = Clock(lambda now: Notice((0, 1) if now > 50 else (0,), None) if now >= 5 else None)
    saved = clock.until(400)
    assert saved[:2] == [5.0, 65.0]
    assert max(saved) < 65 + UNKNOWN
    assert [text.partition(":")[2].partition(":")[0] for text in clock.said] == [
        " the machine of worker 0 will be taken away soon",
        " the machines of workers 0, 1 will be taken away soon",
    ]


class GoneAt:
    """Look number `number`, of which there is one before each step and image, finds a notice as all later."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> Notice | None:
        self.left -= 1
        return Notice((0,), None) if self.left <= 0 else None


class Killed(Listener):
    """Ends the run at a line, or at an image of a validation."""

    def __init__(self, at: int | str) -> None:
        self.at = at

    def metrics(self, step: int, metrics: object) -> None:
        if step == self.at:
            raise SystemExit

    def underway(self, what: str, done: int, total: int) -> None:
        if self.at == "validation" and done >= 4:
            raise SystemExit


def run(
    spec: RunSpec, path: Path, notice: Callable[[], Notice | None] | None, ends_at: int | str = 0
) -> RunDirectory:
    directory, world = RunDirectory(path), World.current()
    if world.is_main:
        open_directory(directory, spec, resume=True)
    reporter = LocalReporter(directory.checkpoints, spec.train.keep_checkpoints)
    entry = Entry(spec, directory, reporter, [Killed(ends_at)])
    (ended,) = train_cohort([entry], world, lambda: False, notice=notice)
    assert not isinstance(ended, Exception)
    return directory


def noticed(spec: RunSpec) -> RunSpec:
    """Looks whenever it may."""
    return spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"preemption_interval": 1e-6})})


@pytest.fixture(scope="module")
def spec(teacher: Path) -> RunSpec:
    train = {"steps": 8, "log_every": 4, "validate_every": 4, "checkpoint_every": 8, "ema": 0.9}
    return noticed(tiny_distillation(teacher, train=train))


@pytest.fixture(scope="module")
def undisturbed(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(spec, tmp_path_factory.mktemp("undisturbed") / "run", None)


def test_it_goes_on_after_the_checkpoint_as_if_there_were_none(
    spec: RunSpec, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    directory = run(spec, tmp_path / "run", GoneAt(3))
    assert figures(directory) == figures(undisturbed)
    states = [read_checkpoint(list_checkpoints(each.checkpoints)[0]) for each in (directory, undisturbed)]
    student = [state["student"] for state in states]
    assert all(torch.equal(student[0][name], student[1][name]) for name in student[1])
    assert states[0]["window"] == {}


@pytest.mark.parametrize(("ends_at", "step"), [(4, 2), ("validation", 4)])
def test_what_is_lost_is_what_came_after_the_notice(
    ends_at: int | str, step: int, spec: RunSpec, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    looks = GoneAt(3 if ends_at == 4 else 6)  # before step 2, and within the validation after step 4
    with pytest.raises(SystemExit):
        run(spec, tmp_path / "run", looks, ends_at)
    directory = RunDirectory(tmp_path / "run")
    assert last_step(directory.checkpoints) == step
    run(spec, directory.path, None)
    assert figures(directory) == figures(undisturbed)


def on_a_rank(path: str, spec: RunSpec, number: int | None) -> list[int]:
    directory = run(spec, Path(path), None if number is None else GoneAt(number))
    return [int(each.name[5:13]) for each in list_checkpoints(directory.checkpoints)]


@pytest.mark.timeout(900)
def test_two_ranks_write_it_at_the_same_step(tmp_path: Path) -> None:
    train = {"steps": 8, "log_every": 8, "validate_every": 8, "checkpoint_every": 8}
    spec = noticed(tiny_baseline(train=train))
    for place in ("whole", "noticed"):
        open_directory(RunDirectory(tmp_path / place), spec, resume=True)
    assert run_ranks(on_a_rank, 2, tmp_path, str(tmp_path / "whole"), spec, None) == [[8], [8]]
    first, second = run_ranks(on_a_rank, 2, tmp_path, str(tmp_path / "noticed"), spec, 2)
    assert first == second
    assert len(first) == 2
    rows = [figures(RunDirectory(tmp_path / place))[0] for place in ("noticed", "whole")]
    assert {k: v for k, v in rows[0].items() if k.startswith("loss/")} == {
        k: v for k, v in rows[1].items() if k.startswith("loss/")
    }
    assert rows[0]["miou"] == pytest.approx(rows[1]["miou"], abs=1e-3)  # BatchNorm is averaged once more
