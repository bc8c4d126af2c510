"""Seconds a step of methods, by a clock that only moves when something is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cirkd_ray.train.distributed import World
from cirkd_ray.train.shared import SharedForward
from cirkd_ray.train.step import TrainStep
from cirkd_ray.train.timing import ROUNDS, WARM_UP, seconds_a_step, side_by_side
from cirkd_ray.types import SegmentationOutput
from tests.tinyrun import tiny_baseline, tiny_distillation


class FakeClock:
    """Seconds that pass when `work` is done."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self, *seconds: float) -> Callable[[], None]:
        """What takes so long at each call; the last one from then on."""
        left = list(seconds)

        def act() -> None:
            self.seconds += left.pop(0) if len(left) > 1 else left[0]

        return act


def test_first_uses_and_busy_moments_do_not_count() -> None:
    clock = FakeClock()
    works = {"a": clock.work(50.0, 50.0, 1.0), "b": clock.work(2.0, 2.0, 2.0, 900.0, 2.0)}
    assert side_by_side(works, clock) == {"a": 1.0, "b": 2.0}


def test_runs_take_turns() -> None:
    order: list[str] = []
    side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, FakeClock())  # type: ignore[misc]
    assert order == ["a", "b"] * (WARM_UP + ROUNDS)


def test_a_run_pays_for_its_own_teacher_and_the_baseline_for_none(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, teach, step = FakeClock(), SharedForward.teach, TrainStep.__call__

    def taught(self: SharedForward, images: torch.Tensor) -> SegmentationOutput:
        clock.seconds += 3.0
        return teach(self, images)

    def stepped(self: TrainStep, *arguments: object) -> object:
        clock.seconds += 1.0
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SharedForward, "teach", taught)
    monkeypatch.setattr(TrainStep, "__call__", stepped)
    specs = {
        "baseline": tiny_baseline(),
        "kd": tiny_distillation(teacher, distill={"losses": {"kd": {"kind": "kd"}}}),
        "cirkd": tiny_distillation(teacher, train={"steps": 1}),
        "twice": tiny_distillation(teacher, train={"accumulate": 2}),
    }
    found = seconds_a_step(specs, World(), clock)
    assert found == {"baseline": 1.0, "kd": 4.0, "cirkd": 4.0, "twice": 7.0}
