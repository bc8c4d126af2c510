"""Write the report of a sweep or a comparison: a page that opens without network, and its pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the report of a sweep or a comparison"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("folder", help="of a sweep or a comparison, finished or not")


def run(args: argparse.Namespace) -> int:
    """Read the folder, write `report/`."""
    from cirkd_ray.compare.folder import COMPARISON, read_comparison
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.report.sweep_page import write_sweep
    from cirkd_ray.sweep.folder import read_sweep

    folder = Path(args.folder).expanduser().absolute()
    console = output()
    if (folder / "sweep.yaml").is_file():
        page = write_sweep(read_sweep(folder))
        console.print(f"TensorBoard  tensorboard --logdir {folder / 'tensorboard'}", highlight=False)
    elif (folder / COMPARISON).is_file():
        page = write_comparison(read_comparison(folder))
    else:
        raise ConfigError(f"{folder}: holds neither a sweep (sweep.yaml) nor a comparison ({COMPARISON})")
    console.print(f"report       {page}", highlight=False)
    return 0
