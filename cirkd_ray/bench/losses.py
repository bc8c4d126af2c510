"""Distillation losses: time and memory beside naive code of the same equations, and what ranks exchange.

Times are forward plus backward, the best of several repetitions taken in turns; compare the ratios of one
run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

PARTS = ("losses", "tokens", "enqueue", "exchange")


def run(
    *,
    device: str = "auto",
    shapes: Sequence[str] = (),
    losses: Sequence[str] = (),
    parts: Sequence[str] = (),
    clock: str = "wall",
    repeat: int = 3,
) -> None:
    """Measure and print the tables.

    Args:
        device: "auto", "cpu" or "cuda".
        shapes: names of `SHAPES`; empty for all but the tiny one.
        losses: names of losses; empty for all.
        parts: of `PARTS`; empty for all.
        clock: "wall", or "cpu" for processor time.
        repeat: repetitions.

    Raises:
        ConfigError: there is no shape or loss of that name.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that counts memory is chatty
    import torch

    from cirkd_ray.bench import _losses_measure as tables
    from cirkd_ray.bench._losses_measure import SHAPES, Clock
    from cirkd_ray.device import local_device
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.losses import LOSSES
    from cirkd_ray.report.console import output

    shapes = list(shapes) or ["cityscapes", "ade20k", "segformer"]
    for name in shapes:
        if name not in SHAPES:
            raise ConfigError(f"--shape: no shape named {name!r}{nearest(name, SHAPES)}")
    kinds = [name for name in losses or LOSSES.names() if LOSSES.get(name)]
    timer = Clock(local_device(device), repeat, clock == "cpu")
    console, parts = output(), parts or PARTS
    console.print(
        f"{timer.device}, {clock} time, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    small = shapes == ["tiny"]
    if "losses" in parts:
        for name in shapes:
            console.print(tables.loss_table(name, kinds, timer).rich())
    if "tokens" in parts:
        counts = [256, 512] if small else [1024, 2048, 4096, 8192, 16384]
        console.print(tables.token_table(counts, timer).rich())
    if "enqueue" in parts:
        console.print(tables.enqueue_line(SHAPES["tiny" if small else "cityscapes"], timer))
    if "exchange" in parts:
        for name in shapes:
            console.print(tables.exchange_line(name))
