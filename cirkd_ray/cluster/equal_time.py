"""Steps of the methods of a comparison at equal time: measured once, on what a worker of their runs has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from cirkd_ray.cluster.measuring import of_one_worker, on_a_worker
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.compare.budget import TIMING, read_timing, share_of_time, with_steps
from cirkd_ray.compare.folder import BASELINE
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import Tree
from cirkd_ray.files import write_text
from cirkd_ray.train.distributed import World
from cirkd_ray.train.timing import seconds_a_step


def with_equal_time(
    methods: dict[str, RunSpec], folder: Path, plan: Plan, say: Callable[[str], None]
) -> dict[str, RunSpec]:
    """The methods, each with as many steps as take as long as the baseline's.

    The folder keeps what was measured. A method that is added later is measured beside the baseline.

    Args:
        methods: with their teachers' weights, the baseline among them.
        folder: of the comparison.
        plan: what a run takes.
        say: hears of the figures.

    Raises:
        UserError: a method cannot be built.
        Stopped: this process was asked to stop.
    """
    known = read_timing(folder)
    new = [name for name in methods if name not in known]
    if new:
        say("equal time: steps of all methods are timed beside each other")
        found = measure({name: methods[name] for name in dict.fromkeys((BASELINE, *new))}, plan)
        steps = methods[BASELINE].train.steps
        known |= {name: share_of_time(steps, found[BASELINE], found[name]) for name in new}
        write_text(folder / TIMING, json.dumps({name: s._asdict() for name, s in known.items()}, indent=1))
    for name in methods:
        say(f"equal time: {name} takes {known[name].seconds:.3f} s a step and trains {known[name].steps}")
    return {name: with_steps(spec, known[name].steps) for name, spec in methods.items()}


def measure(specs: Mapping[str, RunSpec], plan: Plan) -> dict[str, float]:
    """`train.timing.seconds_a_step` in a task with a worker's CPUs and GPU.

    Of several workers it is one with its share of the batch: what they exchange is not measured.
    """
    trees = {name: of_one_worker(spec, plan).to_dict() for name, spec in specs.items()}
    return on_a_worker(_measure, plan, next(iter(specs.values())), trees)


def _measure(device: torch.device, trees: Mapping[str, Tree]) -> dict[str, float]:
    return seconds_a_step({name: from_tree(tree) for name, tree in trees.items()}, World(device=device))
