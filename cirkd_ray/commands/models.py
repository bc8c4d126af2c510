"""`cirkd models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click import argument, option

from cirkd_ray.commands._options import COUNT, Words, device_option, size_option, together

if TYPE_CHECKING:
    from rich.table import Table

    from cirkd_ray.models.cost import Cost

selection = together(
    argument("names", nargs=-1, metavar="[NAME]...", help="Networks or beginnings of names (default: all)."),
    size_option("Default: the training crop."),
    option("--classes", type=int, default=19, metavar="K", help="Number of classes."),
    option("--batch", type=COUNT, default=1, help="Images at once in the measurement."),
    device_option,
    option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
)


@click.command()
@selection
@option("--bench", is_flag=True, help="Also measure forward images/s on this device.")
def command(**settings: Any) -> None:
    """Every network of the published tables, or those named: size, cost, maps; with --bench their speed here.

    Multiply-adds are those of one image at the network's training crop on Cityscapes (or --size), without the
    auxiliary head, which is used in training only. Any HEAD:TIMM_NAME can be named.
    """
    show(**settings)


def show(
    names: Words,
    size: tuple[int, int] | None,
    classes: int,
    batch: int,
    device: str,
    as_json: bool,
    bench: bool,
) -> None:
    """Count, measure if asked to, print."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from cirkd_ray.models.build import select_names
    from cirkd_ray.models.cost import cost
    from cirkd_ray.report.console import output

    chosen = select_names(names)
    rows: list[tuple[Cost, float | None]] = []
    console = output(highlight=False)
    console.width = console.width if console.is_terminal else 240
    with Console(stderr=True).status("counting") as status:
        for name in chosen:
            status.update(name)
            counted = cost(name, size, classes)
            rows.append((counted, _speed(counted, classes, batch, device) if bench else None))
    if as_json:
        print(json.dumps([{**asdict(counted), "images_per_second": speed} for counted, speed in rows]))
        return
    console.print(_table(rows))


def _speed(counted: Cost, classes: int, batch: int, device: str) -> float:
    """Images a second of that network on the chosen device."""
    import torch

    from cirkd_ray.device import local_device
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.models import build_model
    from cirkd_ray.models.cost import images_per_second

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here")
    model = build_model(counted.name, num_classes=classes)
    model.auxiliary = None
    return images_per_second(model, counted.size, local_device(device), batch=batch)


def _table(rows: list[tuple[Cost, float | None]]) -> Table:
    from rich.table import Column, Table

    titles = ["parameters", "multiply-adds", "at", "feature", "stride", "encoder strides"]
    titles += ["images/s"] if any(speed is not None for _, speed in rows) else []
    columns = [Column(title, justify="right") for title in titles]
    table = Table(Column("network", overflow="fold"), *columns, box=None)
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
    return table
