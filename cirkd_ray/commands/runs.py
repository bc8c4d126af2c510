"""`cirkd runs`."""

from __future__ import annotations

import click
from click import option

from cirkd_ray.commands._options import out_folder


@click.command()
@option("--out", "folder", default="runs", metavar="DIR", help="The folder of runs, or its URL.")
@option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(folder: str, as_json: bool) -> None:
    """List the runs, sweeps and comparisons of a folder, newest first, with the lines that continue them."""
    from cirkd_ray.remote.reading import fetch_all, is_figure
    from cirkd_ray.report.status import statuses, table

    place = out_folder(folder)
    fetch_all(place, is_figure)
    found = statuses(place)
    if as_json:
        import json

        from cirkd_ray.files import plain_json

        print(json.dumps([plain_json(each.to_dict()) for each in found], indent=2))
        return
    from cirkd_ray.report.console import output

    output().print(table(found, place))
