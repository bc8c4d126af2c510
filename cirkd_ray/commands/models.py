"""Every network of the published tables, or those named: size, cost, maps, and with --bench the speed here.

Multiply-adds are those of one image at the network's training crop on Cityscapes (or --size), without the
auxiliary head, which is used in training only. Any HEAD:TIMM_NAME can be named.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cirkd_ray.models.cost import Cost

HELP = "table of the networks: parameters, multiply-adds, maps; with --bench their speed"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_selection(parser)
    parser.add_argument("--bench", action="store_true", help="also measure forward images/s on this device")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which networks, at which size."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="networks or beginnings of names (default: all)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the training crop"
    )
    parser.add_argument("--classes", type=int, default=19, metavar="K")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once in the measurement")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Count, measure if asked to, print."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from cirkd_ray.commands._common import require_size
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.models.cost import cost
    from cirkd_ray.report.console import output

    require_size(args.size or (1, 1))
    if args.batch < 1:
        raise ConfigError(f"--batch {args.batch}: at least one image at once")
    names = _select(args.names)
    size = tuple(args.size) if args.size else None
    console = output(highlight=False)
    console.width = console.width if console.is_terminal else 240
    rows: list[tuple[Cost, float | None]] = []
    with Console(stderr=True).status("counting") as status:
        for name in names:
            status.update(name)
            counted = cost(name, size, args.classes)
            rows.append((counted, _speed(args, counted) if args.bench else None))
    if args.json:
        print(json.dumps([{**asdict(counted), "images_per_second": speed} for counted, speed in rows]))
        return 0
    _print(console, rows, args)
    return 0


def _select(wanted: list[str]) -> list[str]:
    """Published networks that begin as asked for, and names with a colon as they are."""
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.models.build import model_names, parse_name

    if not wanted:
        return model_names()
    names = []
    for item in wanted:
        if ":" in item:
            parse_name(item)
            names.append(item)
            continue
        found = [item] if item in model_names() else [name for name in model_names() if name.startswith(item)]
        if not found:
            raise ConfigError(f"no network named {item!r}{nearest(item, model_names())}")
        names += found
    return list(dict.fromkeys(names))


def _speed(args: argparse.Namespace, counted: Cost) -> float:
    """Images a second of that network on the chosen device."""
    import torch

    from cirkd_ray.errors import ConfigError
    from cirkd_ray.models import build_model
    from cirkd_ray.models.cost import images_per_second

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if args.device == "auto" else args.device)
    model = build_model(counted.name, num_classes=args.classes)
    model.auxiliary = None
    return images_per_second(model, counted.size, device, batch=args.batch)


def _print(console: object, rows: list[tuple[Cost, float | None]], args: argparse.Namespace) -> None:
    """The table."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("network", overflow="fold")
    for title in ("parameters", "multiply-adds", "at", "feature", "stride", "encoder strides"):
        table.add_column(title, justify="right")
    if args.bench:
        table.add_column("images/s", justify="right")
    for item, speed in rows:
        height, width = item.size
        cells = [
            item.name,
            f"{item.parameters / 1e6:.2f} M",
            f"{item.multiply_adds / 1e9:.1f} G",
            f"{height}x{width}",
            str(item.feature),
            str(item.strides[0]),
            " ".join(map(str, item.strides[1:])),
        ]
        table.add_row(*cells, *([f"{speed:.2f}"] if speed is not None else []))
    console.print(table)  # type: ignore[attr-defined]
