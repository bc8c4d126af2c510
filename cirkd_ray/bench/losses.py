"""Distillation losses: time and memory beside naive code of the same equations, and what ranks exchange.

Times are forward plus backward, the best of several repetitions taken in turns; compare the ratios of one
run.
"""

from __future__ import annotations

import argparse
import os

HELP = "losses: time, memory and traffic beside naive implementations"
PARTS = ("losses", "tokens", "enqueue", "exchange")


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--shape", action="append", metavar="NAME", help="cityscapes, ade20k, segformer or tiny; repeatable"
    )
    parser.add_argument("--loss", action="append", metavar="NAME", help="only these losses; repeatable")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these tables; repeatable")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that counts memory is chatty
    import torch

    from cirkd_ray.bench import _losses_measure as tables
    from cirkd_ray.bench._losses_measure import SHAPES, Clock
    from cirkd_ray.device import local_device
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.losses import LOSSES
    from cirkd_ray.report.console import output

    shapes = args.shape or ["cityscapes", "ade20k", "segformer"]
    for name in shapes:
        if name not in SHAPES:
            raise ConfigError(f"--shape: no shape named {name!r}{nearest(name, SHAPES)}")
    if args.repeat < 1:
        raise ConfigError("--repeat must be at least 1")
    kinds = [name for name in args.loss or LOSSES.names() if LOSSES.get(name)]
    clock = Clock(local_device(args.device), args.repeat, args.clock == "cpu")
    console, parts = output(), args.part or PARTS
    console.print(
        f"{clock.device}, {args.clock} time, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    small = shapes == ["tiny"]
    if "losses" in parts:
        for name in shapes:
            console.print(tables.loss_table(name, kinds, clock).rich())
    if "tokens" in parts:
        counts = [256, 512] if small else [1024, 2048, 4096, 8192, 16384]
        console.print(tables.token_table(counts, clock).rich())
    if "enqueue" in parts:
        console.print(tables.enqueue_line(SHAPES["tiny" if small else "cityscapes"], clock))
    if "exchange" in parts:
        for name in shapes:
            console.print(tables.exchange_line(name))
    return 0
