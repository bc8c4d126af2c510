"""The figures of the steps between two lines of metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cirkd_ray.train.distributed import World, over_ranks


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

    def packed(self, world: World) -> dict[str, Any]:
        """Plain values for a checkpoint between two lines; the terms of each rank apart."""
        seconds = time.perf_counter() - self.start
        terms = {name: over_ranks(value, world) for name, value in self.terms.items()}
        return {"terms": terms, "steps": self.steps, "wait": self.wait, "seconds": seconds}

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
