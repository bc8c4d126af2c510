"""`cirkd report`."""

from __future__ import annotations

from pathlib import Path

import click
from click import argument


@click.command()
@argument("folder", metavar="FOLDER", help="Of a sweep or a comparison, finished or not.")
def command(folder: str) -> None:
    """Write the report of a sweep or a comparison: a page that opens without network, and its pictures."""
    from cirkd_ray.compare.folder import COMPARISON, read_comparison
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.report.sweep_page import write_sweep
    from cirkd_ray.sweep.folder import read_sweep

    place = Path(folder).expanduser().absolute()
    console = output()
    if (place / "sweep.yaml").is_file():
        page = write_sweep(read_sweep(place))
        console.print(f"TensorBoard  tensorboard --logdir {place / 'tensorboard'}", highlight=False)
    elif (place / COMPARISON).is_file():
        page = write_comparison(read_comparison(place))
    else:
        raise ConfigError(f"{place}: holds neither a sweep (sweep.yaml) nor a comparison ({COMPARISON})")
    console.print(f"report       {page}", highlight=False)
