"""Seconds that a step of several runs takes, each alone, measured beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from cirkd_ray.config import RunSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import wait
from cirkd_ray.train.batches import training_batches
from cirkd_ray.train.build import Run, build_cohort
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.distributed import World

WARM_UP = 2
"""Steps of each run that do not count: first uses of memory and kernels."""
ROUNDS = 9
"""Steps of each run that count."""
Clock = Callable[[], float]


def seconds_a_step(
    specs: Mapping[str, RunSpec], world: World, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Name -> seconds of a step of that run alone: its images read, its teacher, its losses, its update.

    Runs that can share a teacher have it in memory once, as in a cohort, but each has its own forward pass.

    Args:
        specs: the runs; with several workers, with the batch of one.
        world: where the steps are done.
        clock: seconds.

    Raises:
        UserError: a run cannot be built.
    """
    works: dict[str, Callable[[], object]] = {}
    for names in cohorts_of(specs):
        runs = build_cohort([specs[name] for name in names], world)
        failed = [run for run in runs if isinstance(run, Exception)]
        if failed:
            raise failed[0]
        built = [run for run in runs if isinstance(run, Run)]
        steps = len(built) * (WARM_UP + ROUNDS)
        batches = training_batches(built[0], 0, steps)
        works |= {name: _work(run, batches) for name, run in zip(names, built, strict=True)}

    return side_by_side(works, waiting(clock, world.device))


def waiting(clock: Clock, device: torch.device) -> Clock:
    """The clock, which is read when the device has done what it was asked for."""

    def now() -> float:
        wait(device)
        return clock()

    return now


def _work(run: Run, batches: Iterator[DeviceBatch]) -> Callable[[], object]:
    """A step of that run on the next batch. It is the first one each time: a run may be short."""
    run.step.distiller.train()
    return lambda: run.step(0, [run.shared(next(batches)) for _ in range(run.spec.train.accumulate)])


def side_by_side(
    works: Mapping[str, Callable[[], object]], now: Clock, rounds: int = ROUNDS
) -> dict[str, float]:
    """The median seconds of each, taken in turns so that a busy moment of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(WARM_UP + rounds):
        for name, work in works.items():
            begun = now()
            work()
            taken[name].append(now() - begun)
    return {name: statistics.median(values[WARM_UP:]) for name, values in taken.items()}
