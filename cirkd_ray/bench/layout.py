"""Networks with the channel first and last in memory: evaluation and training, side by side in one run."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cirkd_ray.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from cirkd_ray.bench._losses_measure import Call, Clock
    from cirkd_ray.config import RunSpec, TaskSpec
    from cirkd_ray.models.segmentation import SegmentationModel
    from cirkd_ray.report.tables import TextTable


def run(
    recipes: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    batch: int | None = None,
    repeat: int = 3,
    clock: str = "wall",
    file: str | None = None,
) -> TextTable:
    """Time the networks of each recipe in both layouts, with random images and weights.

    Args:
        recipes: shipped names or files.
        overrides: `PATH=VALUE`, for all of them.
        device: "auto", "cpu" or "cuda".
        batch: images at a time; by default the recipe's.
        repeat: repetitions, of which the best counts; the layouts take turns.
        clock: "wall" or "cpu".
        file: takes the figures as JSON: recipe -> work -> seconds of `first` and `last`, and their `ratio`.

    Raises:
        ConfigError: a recipe is wrong.
    """
    from cirkd_ray.bench._losses_measure import Clock
    from cirkd_ray.bench._step_build import sized
    from cirkd_ray.config import load_run
    from cirkd_ray.device import local_device
    from cirkd_ray.train.distributed import World

    place = local_device(device)
    timing, found = Clock(place, repeat, clock == "cpu"), dict[str, dict[str, dict[str, float]]]()
    for recipe in recipes:
        spec, images = sized(load_run(recipe, overrides), World(device=place), batch)
        found[recipe] = figures(spec, images, timing)
    if file is not None:
        write_text(Path(file), json.dumps(found, indent=1) + "\n")
    return _table(found)


def figures(spec: RunSpec, images: int, clock: Clock) -> dict[str, dict[str, float]]:
    """Work -> seconds with the channel `first` and `last`, and how many times as fast `last` is (`ratio`)."""
    from cirkd_ray.bench._losses_measure import best_seconds
    from cirkd_ray.bench._step_build import classes_of, random_batch
    from cirkd_ray.data.loader import to_device
    from cirkd_ray.train.build import choose_arithmetic
    from cirkd_ray.train.frozen import freeze
    from cirkd_ray.train.untrained import untrained, untrained_teacher

    precision, classes = choose_arithmetic(spec, clock.device), classes_of(spec)
    batch = to_device(random_batch(spec, images, len(classes), clock.device), clock.device)
    student, teacher = untrained(spec.model, len(classes), "model"), untrained_teacher(spec, classes)
    pixels = batch.images.float().sub_(128).div_(64)
    work = {"student, evaluation": [_evaluation(student, pixels, last, precision) for last in (False, True)]}
    if teacher is not None:
        freeze(teacher, [])
        work["teacher"] = [_evaluation(teacher, pixels, last, precision) for last in (False, True)]
    work["student, training"] = [
        _training(student, pixels, batch.labels, spec.task, last, precision) for last in (False, True)
    ]
    found = {}
    for name, calls in work.items():
        for call in calls:  # first uses
            call()
        first, last = best_seconds(calls, clock)
        found[name] = {"first": first, "last": last, "ratio": first / last}
    return found


def _copy(model: SegmentationModel, pixels: Tensor, last: bool) -> tuple[SegmentationModel, Tensor]:
    """The network and its input in one of the layouts, where the input is."""
    import torch

    layout = torch.channels_last if last else torch.contiguous_format
    found = copy.deepcopy(model).to(pixels.device)
    return found.to(memory_format=layout), pixels.contiguous(memory_format=layout)


def _evaluation(model: SegmentationModel, pixels: Tensor, last: bool, precision: str) -> Call:
    import torch

    from cirkd_ray.device import autocast

    network, images = _copy(model, pixels, last)
    network.eval()

    def work() -> None:
        with torch.no_grad(), autocast(precision, images.device):
            network(images)

    return work


def _training(
    model: SegmentationModel, pixels: Tensor, labels: Tensor, task: TaskSpec, last: bool, precision: str
) -> Call:
    """Forward and backward with the labels alone."""
    import torch

    from cirkd_ray.device import autocast
    from cirkd_ray.train.distiller import Distiller

    network, images = _copy(model, pixels, last)
    distiller = Distiller(network.train(), {}, {}, task, 1)

    def work() -> None:
        distiller.zero_grad(set_to_none=True)
        with autocast(precision, images.device):
            total, _ = distiller(images, labels, None, 0)
        torch.autograd.backward(total)

    return work


def _table(found: dict[str, dict[str, dict[str, float]]]) -> TextTable:
    from cirkd_ray.report.tables import TextTable

    rows = tuple(
        (recipe, work, f"{x['first'] * 1e3:.1f}", f"{x['last'] * 1e3:.1f}", f"{x['ratio']:.2f}")
        for recipe, works in found.items()
        for work, x in works.items()
    )
    title = (
        "The channel first or last in memory. train.channels_last=always is for students whose training is\n"
        "faster with it last; evaluation always has it last, and the teacher unless that setting is false."
    )
    return TextTable(("recipe", "work", "first ms", "last ms", "x faster last"), rows, title)
