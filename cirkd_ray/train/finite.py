"""Stopping a run whose losses or weights are no numbers any more."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cirkd_ray.errors import TrainingError
from cirkd_ray.train.distributed import World, minimum_over_ranks
from cirkd_ray.train.step import NEVER, WEIGHTS, NonFinite


def check_finite(nonfinite: NonFinite, world: World, newest: Callable[[], str]) -> None:
    """Stop, on all ranks alike, if a term was not finite since the last look.

    Args:
        nonfinite: what the steps remember.
        world: this rank among its peers.
        newest: finds the last good checkpoint, "" without one. It is called on every rank.

    Raises:
        TrainingError: with the step, counted from 1, the loss's name and the last good checkpoint.
    """
    first = nonfinite.first
    if not first:
        return
    steps = minimum_over_ranks(torch.stack(list(first.values())), world).tolist()
    bad = [(step, name) for step, name in zip(steps, first, strict=True) if step != NEVER]
    if not bad:
        return
    names = [(step, name) for step, name in bad if name != "total"] or bad
    step, name = min(names)
    found = newest()
    kept = f"the last good checkpoint is {found}" if found else "no checkpoint was written before"
    about, when = ("weights", "after") if name == WEIGHTS else (f"loss {name!r}", "at")
    raise TrainingError(
        f"{about}: not finite {when} step {step + 1}; {kept}.\n"
        "Lower optim.lr, set optim.clip_grad_norm, or look at that loss's weight and temperature."
    )
