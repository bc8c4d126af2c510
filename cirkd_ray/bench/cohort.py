"""A step of members that share batches and a teacher, beside the same members apart: time and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.files import write_text

if TYPE_CHECKING:
    import torch

    from cirkd_ray.config import RunSpec
    from cirkd_ray.data.loader import DeviceBatch
    from cirkd_ray.report.tables import TextTable
    from cirkd_ray.train.shared import SharedForward
    from cirkd_ray.train.step import TrainStep


def run(
    *,
    members: int = 4,
    recipes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    device: str = "auto",
    batch: int | None = None,
    repeat: int = 3,
    clock: str = "wall",
    file: str | None = None,
) -> TextTable:
    """Measure a cohort of `members` runs of these recipes, taken in turn.

    Args:
        recipes: shipped names or files; by default `quickstart`.
        overrides: `PATH=VALUE`, for all of them.
        device: "auto", "cpu" or "cuda".
        batch: images a micro-batch; by default the recipe's.
        repeat: repetitions of the timings, of which the best counts.
        clock: "wall" or "cpu".
        file: takes the figures as JSON, see `figures`.

    Raises:
        ConfigError: a recipe is wrong, or the members cannot share.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that counts memory is chatty
    from cirkd_ray.bench._step_build import sized
    from cirkd_ray.config import load_run
    from cirkd_ray.device import local_device
    from cirkd_ray.train.cohort import check_cohort
    from cirkd_ray.train.distributed import World

    named = recipes or ("quickstart",)
    place = local_device(device)
    loaded = {name: sized(load_run(name, overrides), World(device=place), batch)[0] for name in named}
    check_cohort(loaded)
    specs = [loaded[named[number % len(named)]] for number in range(members)]
    found = {"recipes": [*named], **figures(specs, place, repeat, clock == "cpu")}
    if file is not None:
        write_text(Path(file), json.dumps(found, indent=1) + "\n")
    return _table(found)


def figures(specs: Sequence[RunSpec], device: torch.device, repeat: int, cpu: bool) -> dict[str, Any]:
    """The figures of members of these recipes.

    Returns:
        `seconds` of a step of all members `together` and `apart`, and the `ratio` of the two; `peak_bytes`
        from nothing to the end of two steps: of all `together`, of the largest member by itself (`one`),
        what a teacher and the students, each with its own work, add up to (`teacher_and_students`), what
        `resources.pack` takes for the pack's (`estimated`); and the `memory_ratio` of the first to the third.
    """
    import torch

    from cirkd_ray.bench._losses_measure import Clock, best_seconds
    from cirkd_ray.train.memory import peak_bytes, taken
    from cirkd_ray.train.memory import together as estimated

    built = _build(specs, device)
    together, apart = _together(*built), _apart(*built)
    together()  # first uses: the optimiser's state
    apart()
    seconds = best_seconds([together, apart], Clock(device, repeat, cpu))
    height, width = built[2][0].images.shape[2:]
    images = len(built[2][0].images)
    del built, together, apart

    def both_steps() -> None:
        step = _together(*_build(specs, device))
        step()
        step()

    alone = {}
    for key, spec in {spec.to_yaml(): spec for spec in specs}.items():
        shared, (step,), batches = _build([spec], device)
        alone[key] = taken(step, shared, lambda batches=batches: batches)  # type: ignore[misc]
        del shared, step, batches
    members = [alone[spec.to_yaml()] for spec in specs]
    peak = peak_bytes(both_steps, device)
    students = max(m.teacher for m in members) + sum(m.own + m.work for m in members)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "members": len(specs),
        "images": images,
        "size": [height, width],
        "seconds": dict(zip(("together", "apart"), seconds, strict=True)),
        "ratio": seconds[0] / seconds[1],
        "peak_bytes": {
            "together": peak,
            "one": max(estimated([member]) for member in members),
            "teacher_and_students": students,
            "estimated": estimated(members),
        },
        "memory_ratio": peak / students,
    }


Built = tuple["SharedForward", "list[TrainStep]", "list[DeviceBatch]"]


def _build(specs: Sequence[RunSpec], device: torch.device) -> Built:
    """What the members share, their steps, and a step's micro-batches; all weights are random."""
    import torch

    from cirkd_ray.bench._step_build import classes_of, random_batch, sized
    from cirkd_ray.data.loader import to_device
    from cirkd_ray.train.build import assemble, choose_arithmetic
    from cirkd_ray.train.distributed import World
    from cirkd_ray.train.untrained import untrained, untrained_teacher

    world, first = World(device=device), specs[0]
    precision, classes = choose_arithmetic(first, device), classes_of(first)
    torch.manual_seed(0)
    taught = next((spec for spec in specs if spec.distill is not None), first)
    teacher = untrained_teacher(taught, classes)
    students = [untrained(spec.model, len(classes), "model") for spec in specs]
    found, shared = assemble(specs, world, students, teacher, len(classes), precision)
    steps = []
    for step in found:
        if isinstance(step, Exception):
            raise step
        step.distiller.train()
        steps.append(step)
    on_gpu = device.type == "cuda"
    batch = random_batch(first, sized(first, world, None)[1], len(classes), device)
    return shared, steps, [to_device(batch, device, on_gpu) for _ in range(first.train.accumulate)]


def _together(
    shared: SharedForward, steps: list[TrainStep], batches: list[DeviceBatch]
) -> Callable[[], None]:
    """A step of all members, whose teacher runs once."""

    def work() -> None:
        micro_batches = [shared(batch, len(steps)) for batch in batches]
        for step in steps:
            step(0, micro_batches)

    return work


def _apart(shared: SharedForward, steps: list[TrainStep], batches: list[DeviceBatch]) -> Callable[[], None]:
    """A step of each member, for each of which the teacher runs again."""

    def work() -> None:
        for step in steps:
            step(0, [shared(batch) for batch in batches])

    return work


def _table(found: dict[str, Any]) -> TextTable:
    from cirkd_ray.report.tables import TextTable

    seconds, peaks = found["seconds"], found["peak_bytes"]
    height, width = found["size"]
    title = (
        f"{', '.join(found['recipes'])}: {found['members']} members, {found['images']} x {height} x {width}, "
        f"{found['device']}\ntogether / apart: {found['ratio']:.2f}, members / a teacher and as many "
        f"students, in memory: {found['memory_ratio']:.2f}"
    )
    rows = (
        ("together", f"{seconds['together']:.3f}", f"{peaks['together'] / 2**20:.0f}"),
        ("apart, one after the other", f"{seconds['apart']:.3f}", f"{peaks['one'] / 2**20:.0f}"),
        ("a teacher and the students", "-", f"{peaks['teacher_and_students'] / 2**20:.0f}"),
        ("together, estimated of one", "-", f"{peaks['estimated'] / 2**20:.0f}"),
    )
    return TextTable(("members", "s a step", "peak MiB"), rows, title)
