"""How far a run is, and what its next line of metrics is made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.train.distributed import World, over_ranks


@dataclass
class RunProgress:
    """How far a run is, and its scores; part of every checkpoint.

    A checkpoint is written before the validation of the same step, so that a validation which fails costs no
    steps.

    Attributes:
        step: optimiser steps that are done.
        seconds: time that they took, validations and checkpoints left out.
        best, last: scores of the best and of the last validation.
        due: the line of metrics of this step, where its validation is still to come.
        window: of a run that was stopped: its figures since the last line of metrics.
        workers: that the run has; 0 where that is not known.
    """

    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    due: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    workers: int = 0


Mark = float | torch.cuda.Event
"""A moment of the device."""


def mark(device: torch.device) -> Mark:
    """Now, on the device; the host does not wait for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def between(start: Mark, end: Mark) -> float:
    """Seconds between two moments that the device has passed."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    return float(start.elapsed_time(end)) / 1e3


@dataclass
class ReportWindow:
    """Sums over the steps since the last line of metrics; the terms stay on the device until then.

    Attributes:
        away: when companions in a cohort had the device: that is not this run's time.
    """

    terms: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    wait: float = 0.0
    start: float = field(default_factory=time.perf_counter)
    away: list[tuple[Mark, Mark]] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds of this run since the start; the host has waited for the device."""
        return time.perf_counter() - self.start - sum(between(*turn) for turn in self.away)

    def add(self, terms: dict[str, Tensor], wait: float) -> None:
        """Count one step."""
        known = [name for name in terms if name in self.terms]
        if known:  # one launch for all of them
            torch._foreach_add_([self.terms[name] for name in known], [terms[name] for name in known])
        for name in (name for name in terms if name not in known):
            self.terms[name] = terms[name].clone()
        self.steps += 1
        self.wait += wait

    def packed(self, world: World) -> dict[str, Any]:
        """Plain values for a checkpoint between two lines; the terms of each rank apart."""
        terms = {name: over_ranks(value, world) for name, value in self.terms.items()}
        return {"terms": terms, "steps": self.steps, "wait": self.wait, "seconds": self.seconds()}

    @classmethod
    def unpacked(cls, found: dict[str, Any], world: World) -> ReportWindow:
        """The window that a checkpoint holds, or an empty one; other ranks than before share its mean."""
        if not found:
            return cls()
        terms = {
            name: (values[world.rank] if len(values) == world.size else values.mean()).to(world.device)
            for name, values in found["terms"].items()
        }
        return cls(terms, found["steps"], found["wait"], time.perf_counter() - found["seconds"])
