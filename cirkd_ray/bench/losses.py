"""Distillation losses: time and memory beside naive code of the same equations, and what ranks exchange.

Times are forward plus backward, the best of several repetitions taken in turns; compare the ratios of one
run.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cirkd_ray.bench._losses_measure import Clock
    from cirkd_ray.report.tables import Sheet

HELP = "losses: time, memory and traffic beside naive implementations"
MIB = 2**20
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
    if "losses" in parts:
        for name in shapes:
            console.print(loss_sheet(name, kinds, clock).rich())
    if "tokens" in parts:
        console.print(token_sheet(clock, small=shapes == ["tiny"]).rich())
    if "enqueue" in parts:
        console.print(enqueue_line(clock, small=shapes == ["tiny"]))
    if "exchange" in parts:
        for name in shapes:
            console.print(exchange_line(name))
    return 0


def loss_sheet(shape_name: str, kinds: list[str], clock: Clock) -> Sheet:
    """One row a loss."""
    from cirkd_ray.bench._losses_measure import SHAPES
    from cirkd_ray.report.tables import Sheet

    shape = SHAPES[shape_name]
    columns = ("loss", "ms", "naive ms", "x faster", "peak MiB", "naive MiB", "x smaller", "difference")
    rows = tuple(loss_row(kind, shape_name, clock) for kind in kinds)
    size = f"{shape.images} x {shape.height} x {shape.width}, channels {shape.student}/{shape.teacher}"
    return Sheet(columns, rows, f"{shape_name}: {size}, {shape.classes} classes")


def loss_row(kind: str, shape_name: str, clock: Clock) -> tuple[str, ...]:
    """The cells of one loss; `difference` is the largest relative one of a term from the naive value."""
    import copy

    from cirkd_ray.bench._losses_measure import (
        SHAPES,
        best_seconds,
        forward_backward,
        make_inputs,
        make_loss,
        peak_bytes,
    )
    from cirkd_ray.bench._losses_naive import NAIVE

    shape = SHAPES[shape_name]
    loss, inputs = make_loss(kind, shape, clock.device), make_inputs(shape, clock.device)
    if loss.discriminator is not None:
        loss.discriminator.requires_grad_(False)  # as in training, outside its own step
    naive, plain = NAIVE.get(kind), copy.deepcopy(loss)

    def ours() -> dict[str, torch.Tensor]:
        return forward_backward(loss, inputs)

    def theirs() -> dict[str, torch.Tensor]:
        assert naive is not None
        return forward_backward(lambda x: naive(plain, x), inputs)

    found: dict[str, dict[str, torch.Tensor]] = {}
    peak = peak_bytes(lambda: found.update(ours=ours()), clock.device)
    if naive is None:
        seconds = best_seconds([ours], clock)[0]
        return (kind, f"{seconds * 1e3:.1f}", "-", "-", f"{peak / MIB:.1f}", "-", "-", "-")
    much = peak_bytes(lambda: found.update(naive=theirs()), clock.device)
    value, expected = found["ours"], found["naive"]
    difference = max(
        abs(value[name] - expected[name]).item() / max(abs(expected[name]).item(), 1e-12) for name in expected
    )
    seconds, slow = best_seconds([ours, theirs], clock)
    times = (f"{seconds * 1e3:.1f}", f"{slow * 1e3:.1f}", f"{slow / seconds:.2f}")
    return (
        kind,
        *times,
        f"{peak / MIB:.1f}",
        f"{much / MIB:.1f}",
        f"{much / max(peak, 1):.1f}",
        f"{difference:.0e}",
    )


def token_sheet(clock: Clock, small: bool) -> Sheet:
    """Time and memory of the relational primitive as tokens double."""
    from cirkd_ray.bench._losses_parts import token_rows
    from cirkd_ray.report.tables import Sheet

    counts = [256, 512] if small else [1024, 2048, 4096, 8192, 16384]
    rows = []
    for count, seconds, peak, slow, much in token_rows(counts, clock, largest_naive=8192):
        naive = ("-", "-") if slow is None else (f"{slow * 1e3:.1f}", f"{much / MIB:.1f}")
        per_token = f"{peak / count / 1024:.2f}"
        rows.append((str(count), f"{seconds * 1e3:.1f}", naive[0], f"{peak / MIB:.1f}", naive[1], per_token))
    columns = ("tokens", "ms", "naive ms", "peak MiB", "naive MiB", "KiB a token")
    return Sheet(columns, tuple(rows), "relational_kl_symmetric, one image to itself, channels 128/256")


def enqueue_line(clock: Clock, small: bool) -> str:
    """16 images at once, as eight workers give them."""
    from cirkd_ray.bench._losses_measure import SHAPES
    from cirkd_ray.bench._losses_parts import enqueue_seconds

    shape = SHAPES["tiny" if small else "cityscapes"]._replace(images=16)
    ours, slow = enqueue_seconds(shape, clock)
    return (
        f"enqueue of {shape.images} images, {shape.classes} classes, {shape.height} x {shape.width}: "
        f"{ours * 1e3:.1f} ms, by loops {slow * 1e3:.1f} ms: {slow / ours:.1f} times faster"
    )


def exchange_line(shape_name: str) -> str:
    """Bytes that one of two ranks receives in a step of `cirkd_memory`, counted in two gloo processes."""
    from cirkd_ray.bench._losses_parts import exchanged_bytes

    ours, maps, queues = exchanged_bytes(shape_name)
    much = maps + queues
    return (
        f"{shape_name}: a rank of two receives {ours / 1e6:.3f} MB a step; gathered maps {maps / 1e6:.1f} MB "
        f"and broadcast queues (20000 + 2000 a class) {queues / 1e6:.1f} MB: {much / ours:.0f} times fewer"
    )
