"""How far a run is, and what its next line of metrics is made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


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
    """

    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    due: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReportWindow:
    """Sums over the steps since the last line of metrics; the terms stay on the device until then."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    wait: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def add(self, terms: dict[str, Tensor], wait: float) -> None:
        """Count one step."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.steps += 1
        self.wait += wait
