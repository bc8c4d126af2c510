"""What is equal between the methods of a comparison: their steps, or the time that they train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from cirkd_ray.config import RunSpec
from cirkd_ray.files import read_json

Budget = Literal["steps", "time"]
TIMING = "timing.json"
"""The file of a comparison at equal time: method -> its `Share`."""


class Share(NamedTuple):
    """What a method has of the equal time.

    Attributes:
        seconds: of a step, measured beside the other methods.
        steps: that it trains.
    """

    seconds: float
    steps: int


def share_of_time(steps: int, baseline: float, seconds: float) -> Share:
    """As many steps of `seconds` as take as long as `steps` of the baseline; one at least."""
    return Share(seconds, max(1, round(steps * baseline / seconds)))


def read_timing(folder: Path) -> dict[str, Share]:
    """What was measured for the comparison in that folder; nothing where steps are equal."""
    return {name: Share(**share) for name, share in (read_json(folder / TIMING) or {}).items()}


def with_steps(spec: RunSpec, steps: int) -> RunSpec:
    """The recipe with another length."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"steps": steps})})
