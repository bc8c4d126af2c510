"""What a run says while it is under way, and the notes of its heartbeat."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.report import listeners
from cirkd_ray.report.follow import Follower
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.progress import RunProgress
from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.local import run_local
from cirkd_ray.train.loop import train
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.state import load_state
from tests.tinyrun import KillAt, Killed, tiny_baseline, tiny_distillation
from tests.unit.test_engine_run import Messages


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self) -> bool:
        return True


class Notes(Heartbeat):
    """Keeps every note."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, int, int]] = []

    def note(self, phase: Any, step: int, part: int = 0) -> None:
        super().note(phase, step, part)
        self.all.append((phase, step, part))


class Scoring(Listener):
    """Keeps how far validations were."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int]] = []

    def underway(self, what: str, done: int, total: int) -> None:
        self.all.append((what, done, total))


def test_a_validation_says_how_far_it_is_and_so_does_the_scoring_of_a_teacher(
    teacher: Path, tmp_path: Path
) -> None:
    directory, seen = RunDirectory(tmp_path / "run"), Scoring()
    spec = tiny_distillation(teacher, train={"steps": 3, "validate_every": 3, "validate_limit": 4})
    directory.create(spec)
    run_local(spec, directory, [seen, RunLog(directory)])
    assert seen.all == [
        (what, done, 4)
        for what in ("scoring the teacher", "validating at step 3")
        for done in (0, 1, 2, 3, 4)
    ]
    log = (directory.path / "log.txt").read_text()
    assert log.count("scoring the teacher: 0 of 4 images are done") == 1
    assert log.count("validating at step 3: ") == 1  # it is quick: no second line


def test_a_heartbeat_is_noted_before_all_that_may_hang(tmp_path: Path) -> None:
    directory, notes = RunDirectory(tmp_path / "run"), Notes()
    spec = tiny_baseline(train={"steps": 2, "validate_every": 2, "validate_limit": 1})
    directory.create(spec)
    train(spec, World(), directory, LocalReporter(directory.checkpoints, 2), heartbeat=notes)
    assert notes.all == [
        ("data", 1, 0),
        ("step", 1, 0),
        ("data", 2, 0),
        ("step", 2, 0),
        ("checkpoint", 2, 0),
        ("validation", 2, 0),
        ("validation", 2, 1),
    ]
    assert notes.beat.count == 7


def test_the_usual_time_of_a_step_leaves_validations_out() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    for step in range(1, 12):
        heartbeat.note("data", step)
        clock.now += 0.5
        heartbeat.note("step", step)
        clock.now += 0.5
        if step % 2 == 0:
            heartbeat.note("validation", step)
            clock.now += 100
    assert heartbeat.beat.usual == pytest.approx(1.0)


def test_places_are_ordered_as_a_rank_goes_through_them() -> None:
    heartbeat, places = Heartbeat(), []
    for phase, step, part in [
        ("teacher", 0, 0),
        ("teacher", 0, 3),
        ("data", 1, 0),
        ("step", 1, 0),
        ("checkpoint", 1, 0),
        ("validation", 1, 0),
        ("validation", 1, 2),
        ("data", 2, 0),
    ]:
        heartbeat.note(phase, step, part)  # type: ignore[arg-type]
        places.append(heartbeat.beat.place)
    assert places == sorted(set(places))


def test_the_whereabouts_are_the_line_of_the_training_thread() -> None:
    heartbeat, over = Heartbeat(), threading.Event()

    def hang() -> None:
        heartbeat.note("step", 1)
        while not over.is_set():
            time.sleep(0.01)

    thread = threading.Thread(target=hang)
    thread.start()
    while not heartbeat.beat.count:
        time.sleep(0.01)
    where, waits = heartbeat.whereabouts()
    over.set()
    thread.join()
    assert "threading.py" in where or "test_underway.py" in where
    assert not waits


def test_other_workers_than_before_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def continued(path: Path) -> list[str]:
        messages = Messages()
        open_directory(RunDirectory(path), spec, resume=True)
        run_local(spec, RunDirectory(path), [messages])
        return [text for text in messages.texts if "WARNING: workers" in text]

    spec = tiny_baseline()
    for name in ("same", "other"):
        open_directory(RunDirectory(tmp_path / name), spec, resume=True)
        with pytest.raises(Killed):
            run_local(spec, RunDirectory(tmp_path / name), [KillAt(3)])
    assert continued(tmp_path / "same") == []

    def of_two_workers(*args: Any) -> dict[str, Any]:
        found = load_state(*args)
        assert found["workers"] == 1
        return {**found, "workers": 2}

    monkeypatch.setattr("cirkd_ray.train.member.load_state", of_two_workers)
    told = continued(tmp_path / "other")
    assert len(told) == 1
    assert "2 before, 1 now: figures will differ" in told[0]


def test_the_time_left_after_a_restart_does_not_count_the_restart(
    tmp_path: Path,
) -> None:
    clock, run = Clock(), RunDirectory(tmp_path)
    follower = Follower(run, 100)
    follower.show_in(RunProgress(100, stream=io.StringIO(), clock=clock))
    log = RunLog(run)

    def tell(step: int, seconds: float) -> None:
        clock.now += seconds
        run.append_metrics({"step": step})
        follower._show()

    log.start({"name": "kd", "train": {"steps": 100}}, 0)
    tell(10, 0)
    tell(20, 10)
    assert follower.progress.eta() == 80
    log.start({"name": "kd", "train": {"steps": 100}}, 20)  # a worker died; the checkpoint is of this step
    tell(30, 1000)
    assert follower.progress.eta() is None
    tell(40, 10)
    assert follower.progress.eta() == 60


def test_a_follower_shows_a_long_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, run, stream = Clock(), RunDirectory(tmp_path), io.StringIO()
    monkeypatch.setattr(listeners, "PAUSE", 0.0)
    follower = Follower(run, 100)
    follower.show_in(RunProgress(100, stream=stream, clock=clock))
    log = RunLog(run)
    for done, now in ((0, 0), (10, 5), (20, 16), (30, 20), (40, 40)):
        clock.now = float(now)
        log.underway("validating at step 20", done, 50)
        follower._show()
    assert stream.getvalue().splitlines() == [
        "validating at step 20: 20 of 50 images",
        "validating at step 20: 40 of 50 images",
    ]


def test_on_a_terminal_the_live_line_says_that_it_validates() -> None:
    stream = Terminal()
    progress = RunProgress(100, stream=stream)
    progress.underway("validating at step 20", 3, 50)
    progress.finish()
    assert "validating at step 20: 3 of 50 images" in stream.getvalue()
