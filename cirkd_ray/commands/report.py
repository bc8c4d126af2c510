"""`cirkd report`."""

from __future__ import annotations

import click
from click import argument

from cirkd_ray.commands._options import out_folder, uploaded


@click.command()
@argument("folder", metavar="FOLDER", help="Of a sweep or a comparison, finished or not.")
def command(folder: str) -> None:
    """Write the report of a sweep or a comparison: a page that opens without network, and its pictures."""
    from cirkd_ray.compare.folder import COMPARISON, read_comparison
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.remote.copies import address
    from cirkd_ray.remote.reading import fetch_all, is_figure
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.report.sweep_page import write_sweep
    from cirkd_ray.sweep.folder import SPACE, read_sweep

    place = out_folder(folder)
    fetch_all(place, is_figure)
    console = output()
    if not any((place / name).is_file() for name in (SPACE, COMPARISON)):
        raise ConfigError(
            f"{address(place)}: holds neither a sweep ({SPACE}) nor a comparison ({COMPARISON})"
        )
    with uploaded(place / "report"):
        if (place / SPACE).is_file():
            page = write_sweep(read_sweep(place))
            console.print(f"TensorBoard  tensorboard --logdir {place / 'tensorboard'}", highlight=False)
        else:
            page = write_comparison(read_comparison(place))
    console.print(f"report       {address(page)}", highlight=False)
