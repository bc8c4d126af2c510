"""Whether the checkpoints of a sweep fit the disk, before it starts."""

from __future__ import annotations

from pathlib import Path

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import free_bytes, size_text
from cirkd_ray.sweep.space import SweepSpec

TIGHT = 0.8
"""Share of the free space above which a sweep is warned of."""


def check_disk(spec: SweepSpec, base: RunSpec, each: int, folder: Path, fresh: bool) -> str:
    """One line with what the sweep's checkpoints will take and what is free.

    Args:
        spec: the space.
        base: the recipe of a trial.
        each: bytes of a checkpoint.
        folder: the sweep's.
        fresh: what the folder holds is moved aside; else its checkpoints are of this sweep.

    Raises:
        ConfigError: they do not fit, and `resources.disk` is not `ignore`.
    """
    count = checkpoints(spec, base)
    held = () if fresh else folder.rglob("checkpoints/*/state.pt")
    there = sum(path.stat().st_size for path in held)
    need, free = max(0, count * each - there), free_bytes(folder)
    product = f"{count} of {size_text(each)}"
    told = f"about {size_text(need)} " + (
        f"more ({product}, less {size_text(there)} there)" if there else f"({product})"
    )
    line = f"disk: checkpoints will take {told}, {size_text(free)} are free in {folder}"
    if need > free and spec.resources.disk == "check":
        raise ConfigError(
            f"resources.disk: the checkpoints of the sweep will take {told}, "
            f"but {size_text(free)} are free in {folder};\n"
            "free some, lower train.keep_checkpoints or budget.trials, or go on with resources.disk=ignore"
        )
    if need > free:
        return f"{line}; they do not fit"
    return f"{line}; that is tight" if need > TIGHT * free else line


def checkpoints(spec: SweepSpec, base: RunSpec) -> int:
    """How many checkpoints a sweep has on the disk at most, one in writing with each run.

    In a population each trial has one more that it points to and one that others may be given.
    """
    kept = base.train.keep_checkpoints + 1
    population = 2 if spec.scheduler.name == "pbt" else 0
    controls = (2 if base.distill is not None else 1) * len(spec.seeds) if spec.controls else 0
    finalists = spec.finalists * (len(spec.seeds) - 1)
    return spec.trials * (kept + population) + (controls + finalists) * kept
