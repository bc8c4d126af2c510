"""`cirkd report`."""

from __future__ import annotations

import click
from click import argument, option

from cirkd_ray.commands._options import NOT_NEGATIVE, out_folder, uploaded


@click.command()
@argument("folder", metavar="FOLDER", help="Of a run, a sweep or a comparison, finished or not.")
@option("--images", type=NOT_NEGATIVE, default=40, help="Of a run: validation images its networks are shown.")
def command(folder: str, images: int) -> None:
    """Write the report of a run, a sweep or a comparison: a page that opens without network, with pictures.

    A run's page has its curves and recipe and, from --images of the validation split, the IoU of each class
    by network, the confusion, best and worst images, relations between images and class embeddings.
    """
    from cirkd_ray.compare.folder import COMPARISON, read_comparison
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.remote.copies import address
    from cirkd_ray.remote.reading import fetch_all, is_figure
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.report.progress import bar
    from cirkd_ray.report.run_page import write_run
    from cirkd_ray.report.sweep_page import write_sweep
    from cirkd_ray.sweep.folder import SPACE, read_sweep
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.weights.card import RUN_FILE, on_this_machine

    place = out_folder(folder)
    fetch_all(place, is_figure)
    console = output()
    if not any((place / name).is_file() for name in (SPACE, COMPARISON, RUN_FILE)):
        raise ConfigError(f"{address(place)}: holds no run, sweep or comparison; give the folder of one")
    with uploaded(place / "report"):
        if (place / SPACE).is_file():
            page = write_sweep(read_sweep(place))
            console.print(f"TensorBoard  tensorboard --logdir {place / 'tensorboard'}", highlight=False)
        elif (place / COMPARISON).is_file():
            page = write_comparison(read_comparison(place))
        else:
            on_this_machine(address(place))
            with bar(images, "images") as advance:
                page = write_run(RunDirectory(place), images, advance)
    console.print(f"report       {address(page)}", highlight=False)
