"""A run that stands still says so: without Ray in its log, and before it begins on the terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.train import checkpoint, stall
from cirkd_ray.train.checkpoint import complaint, write_checkpoint
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import run_recipe
from cirkd_ray.train.stall import Stall
from tests.tinyrun import tiny_baseline
from tests.unit.test_engine_run import Messages
from tests.unit.test_patience import make_root, with_cluster


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_standstill_is_told_after_each_doubling_and_so_is_that_it_is_over() -> None:
    clock, said = Clock(), []
    heartbeat = Heartbeat(clock)
    for step in range(1, 5):
        heartbeat.note("data", step)
        clock.now += 2.0
        heartbeat.note("step", step)
    watch, begun = Stall(heartbeat, clock), clock.now
    for _ in range(300):
        clock.now += 1
        said.append((clock.now - begun, watch.look()))
    told = [(seconds, text) for seconds, text in said if text is not None]
    assert [seconds for seconds, _ in told] == [60, 120, 240]
    assert told[0][1].startswith("WARNING: the run has not finished step 4 for 60 s (usually 2 s); it is at ")
    heartbeat.note("data", 5)
    clock.now += 1
    assert watch.look() == "the run goes on after 301 s"
    heartbeat.note("step", 5)
    assert watch.look() is None


@pytest.mark.parametrize(
    ("phase", "usual", "seconds"), [("start", 0.1, 180), ("validation", 0.1, 180), ("data", 30.0, 300)]
)
def test_slow_steps_and_what_is_no_step_are_given_longer(phase: Any, usual: float, seconds: float) -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    for step in range(1, 5):
        heartbeat.note("data", step)
        heartbeat.note("step", step)
        clock.now += usual
    heartbeat.note(phase, 5)
    watch, begun = Stall(heartbeat, clock), clock.now
    while watch.look() is None:
        clock.now += 1
    assert clock.now - begun == seconds


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "FLOOR", 0.5)
    monkeypatch.setattr(stall, "GRACE", 1)
    monkeypatch.setattr(stall, "TIMES", 0)
    monkeypatch.setattr(stall, "LOOK", 0.02)


def held_until(said: Callable[[], bool], act: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`act`, whose call number `at` returns when something was said."""
    calls = [0]

    def held(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        end = time.monotonic() + 120
        while calls[0] == at and not said() and time.monotonic() < end:
            time.sleep(0.02)
        return act(*arguments, **options)

    return held


@pytest.mark.parametrize("loaders", [0, 1])
def test_images_that_do_not_come_are_told_in_the_log_of_a_run_without_ray(
    loaders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    spec, messages = with_cluster(make_root(tmp_path / "root"), workers=loaders), Messages()
    directory = RunDirectory(tmp_path / "run")
    open_directory(directory, spec, resume=False)
    from cirkd_ray.data.loader import Batches
    from cirkd_ray.report.listeners import RunLog

    stuck = held_until(lambda: any("images of step" in t for t in messages.texts), Batches._attempt, 4)
    monkeypatch.setattr(Batches, "_attempt", stuck)
    run_local(spec, directory, [messages, RunLog(directory)])
    log = (directory.path / "log.txt").read_text()
    assert "WARNING: the run has not got the images of step " in log
    assert "the run goes on after" in log


def test_data_that_cannot_be_looked_at_are_told_before_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    said: list[str] = []
    from cirkd_ray.train import same_data

    looked = held_until(lambda: any("has not begun" in text for text in said), same_data.build_datasets, 1)
    monkeypatch.setattr(same_data, "build_datasets", looked)
    run_recipe(tiny_baseline(), RunDirectory(tmp_path / "run"), tmp_path, run_local, say=said.append)
    assert any(text.startswith("WARNING: the run has not begun to train for") for text in said)


def test_a_checkpoint_that_the_disk_takes_slowly_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PART", 1000)
    heartbeat, state = Heartbeat(), {"step": 1, "x": torch.arange(2500, dtype=torch.float32)}
    write_checkpoint(tmp_path / "step_00000001", state, heartbeat.alive)
    assert heartbeat.beat.count >= 10
    assert complaint(tmp_path / "step_00000001") is None
    found = torch.load(tmp_path / "step_00000001" / "state.pt", weights_only=True)
    assert torch.equal(found["x"], state["x"])


def test_the_thread_ends_with_its_block() -> None:
    with stall.told_where_it_stalls(Heartbeat(), lambda text: None):
        assert any(thread.name == "stall" for thread in threading.enumerate())
    assert not any(thread.name == "stall" for thread in threading.enumerate())
