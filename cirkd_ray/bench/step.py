"""A recipe's training step at its sizes: what each part takes, beside the same student without a teacher.

The images and, where the recipe says which network the teacher is, all weights are random.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.files import write_text

if TYPE_CHECKING:
    import torch

    from cirkd_ray.bench._step_build import Subject, Work
    from cirkd_ray.report.tables import TextTable
    from cirkd_ray.train.step import TrainStep


def run(
    recipes: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    ranks: int = 1,
    batch: int | None = None,
    repeat: int = 3,
    file: str | None = None,
) -> list[TextTable]:
    """Measure the step of each recipe.

    Args:
        recipes: shipped names or files.
        overrides: `PATH=VALUE`, for all of them.
        device: "auto", "cpu" or "cuda".
        ranks: how many workers share the global batch; the others are pretended and exchange nothing.
        batch: images a rank and micro-batch; by default the recipe's.
        repeat: repetitions of the timings, of which the best counts.
        file: takes the figures as JSON: recipe -> `figures`.

    Returns:
        A table a recipe.

    Raises:
        ConfigError: a recipe is wrong, or the batch does not divide.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that counts memory is chatty
    from cirkd_ray.bench._step_build import build
    from cirkd_ray.bench._step_build import ranks as world_of
    from cirkd_ray.bench._step_count import device_counters
    from cirkd_ray.config import load_run
    from cirkd_ray.device import local_device

    device_counters()  # installs what counts before anything runs
    place = local_device(device)
    found: dict[str, dict[str, Any]] = {}
    for recipe in recipes:
        with world_of(ranks, place) as world:
            found[recipe] = figures(build(load_run(recipe, overrides), world, batch), repeat)
    if file is not None:
        write_text(Path(file), json.dumps(found, indent=1) + "\n")
    return [_table(recipe, values) for recipe, values in found.items()]


def figures(subject: Subject, repeat: int) -> dict[str, Any]:
    """The figures of one recipe.

    Returns:
        `launches` of a step (`launches_are`: "launches" on devices, dispatched "operations" on CPUs);
        `fused`: its relations on compiled kernels, which a device that counts leaves out of the launches;
        `host_waits`, line -> how often; `peak_bytes` of a step; `operations`, `flops` and `bytes` by part
        (the latter two by type); `seconds` by part, None where nothing was timed; `model_seconds` by part,
        None where the device's peaks are not known; `ratios` of the seconds, else of the model's.
    """
    import torch

    from cirkd_ray.bench._losses_measure import Clock, best_seconds
    from cirkd_ray.bench._step_build import parts
    from cirkd_ray.bench._step_count import Tally, as_dict, device_counters, host_waits, launches
    from cirkd_ray.bench._step_devices import peak_of
    from cirkd_ray.train.memory import peak_bytes

    device, peak = subject.device, peak_of(subject.device)
    whole, plain = _steps(subject)
    whole()  # first uses: autotuning, choices, the optimiser's state
    plain()
    work = {**parts(subject), "step": whole, "step without distillation": plain}
    tallies = {}
    for name, part in work.items():
        with Tally(peak) as tallies[name]:
            part()
    with host_waits(device) as waits:
        whole()
    number, what = launches(whole, device)
    counts_only = device_counters() is not None
    seconds: dict[str, float | None] = dict.fromkeys(work)
    if not counts_only:
        seconds.update(zip(work, best_seconds(list(work.values()), Clock(device, repeat)), strict=True))
    model = {name: tally.model_seconds if peak else None for name, tally in tallies.items()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "counts_only": counts_only,
        "images": len(subject.batch.images),
        "size": list(subject.batch.images.shape[2:]),
        "ranks": subject.step.world.size,
        "precision": subject.precision,
        "launches": number,
        "launches_are": what,
        "fused": tallies["step"].fused,
        "host_waits": dict(waits),
        "peak_bytes": _peak(whole, device) if device.type == "cuda" else peak_bytes(whole, device),
        "operations": {name: tally.operations for name, tally in tallies.items()},
        "flops": {name: as_dict(tally.flops) for name, tally in tallies.items()},
        "bytes": {name: as_dict(tally.bytes) for name, tally in tallies.items()},
        "seconds": seconds,
        "model_seconds": model,
        "ratios": _ratios(model if counts_only else seconds),
    }


def _steps(subject: Subject) -> tuple[Work, Work]:
    """The whole step, and the one without distillation, on a batch that is on the device."""
    batches = [subject.moved()] * subject.spec.train.accumulate

    def work(step: TrainStep) -> Work:
        return lambda: step(0, [subject.shared(batch) for batch in batches])

    return work(subject.step), work(subject.plain)


def _peak(work: Work, device: torch.device) -> int:
    """The most bytes on the device during `work`, with what lies there all the time."""
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def _ratios(seconds: dict[str, float | None]) -> dict[str, float]:
    """Of the step, and of all losses together, to what they are added to; empty where nothing is known."""
    known = {name: value for name, value in seconds.items() if value}
    plain, whole = known.get("step without distillation"), known.get("step")
    if plain is None or whole is None:
        return {}
    losses = sum(value for name, value in known.items() if name.startswith("loss "))
    needed = plain + known.get("teacher", 0.0)
    return {
        "step / step without distillation": whole / plain,
        "step / (teacher + step without distillation)": whole / needed,
        "losses / step": losses / whole,
    }


def _table(recipe: str, values: dict[str, Any]) -> TextTable:
    """One row a part, and below them the figures of the step."""
    from cirkd_ray.report.tables import TextTable

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:.2f}"

    rows = [
        (
            name,
            milliseconds(values["seconds"][name]),
            milliseconds(values["model_seconds"][name]),
            str(values["operations"][name]),
            " ".join(f"{kind} {count / 1e9:.1f}" for kind, count in values["flops"][name].items()) or "-",
            f"{sum(values['bytes'][name].values()) / 2**20:.0f}",
        )
        for name in values["seconds"]
    ]
    waits = ", ".join(f"{line} ({count}x)" for line, count in values["host_waits"].items()) or "none"
    height, width = values["size"]
    title = (
        f"{recipe}: {values['images']} x {height} x {width} a rank, {values['ranks']} ranks, "
        f"{values['precision']}, {values['device']}"
        + (" - a device that counts and computes nothing: no times" if values["counts_only"] else "")
        + f"\n{values['launches']} {values['launches_are']}{_beside(values)} a step; host waits: {waits}; "
        f"peak {values['peak_bytes'] / 2**20:.0f} MiB"
        + "".join(f"\n{name}: {ratio:.2f}" for name, ratio in values["ratios"].items())
    )
    columns = ("part", "ms", "roofline ms", "operations", "GFLOP", "MiB moved")
    return TextTable(columns, tuple(rows), title)


def _beside(values: dict[str, Any]) -> str:
    """The kernels that the number of launches leaves out."""
    return f" and {values['fused']} compiled relations" if values["counts_only"] and values["fused"] else ""
