"""Ranks count their valid pixels together, once a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cirkd_ray.bench._step_build import build, ranks
from cirkd_ray.config import from_tree
from cirkd_ray.losses import reduce
from cirkd_ray.losses.counts import CountsAhead
from tests.gpu.subjects import MEMORY
from tests.tinyrun import tiny_distillation

CPU = torch.device("cpu")
LOSSES = {
    "kd": {"kind": "kd"},
    "minibatch": {"kind": "cirkd_minibatch", "pool": 2},
    "memory": {"kind": "cirkd_memory", **MEMORY},
    "inner": {"kind": "at", "student_tap": "stage2", "teacher_tap": "stage2"},
}


@contextmanager
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens in a step: messages of counts, and the student's forward pass."""
    events: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(reduce.dist, "all_reduce", lambda x, *_, **__: events.append(f"message {x.numel()}"))
        yield events


def steps(teacher: Path, events: list[str]) -> list[dict[str, Tensor]]:
    """The terms of two steps of the first of two ranks."""
    spec = tiny_distillation(teacher, distill={"losses": LOSSES}, train={"batch_size": 4})
    found = []
    with ranks(2, CPU) as world:
        subject = build(from_tree(spec.to_dict()), world, 2)
        labels = subject.batch.labels
        labels[:, :9, :13] = 255
        student = subject.step.distiller.student
        student.register_forward_pre_hook(lambda *_: events.append("student"))
        for number in range(2):
            events.append(f"step {number}")
            torch.manual_seed(number)  # of dropout
            found.append(subject.step(number, [subject.shared(subject.moved())]))
    return found


def test_one_message_before_the_forward_pass_gives_the_same(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with told(monkeypatch) as events:
        found = steps(teacher, events)
    first, second = events.index("step 0"), events.index("step 1")
    assert events[first : first + 3] == ["step 0", "message 1", "student"]
    assert len(events[first:second]) > 4  # each size of map by itself
    sizes = len(events[first:second]) - 3
    assert events[second : second + 3] == ["step 1", f"message {sizes}", "student"]
    assert events[second + 3 :] == ["message 1"]  # the pooled mask
    monkeypatch.setattr(CountsAhead, "count", lambda *_: None)
    with told(monkeypatch) as events:
        expected = steps(teacher, events)
    assert sum(event.startswith("message") for event in events) == 2 * (sizes + 1)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
