"""`cirkd runs`."""

from __future__ import annotations

from pathlib import Path

import click
from click import option


@click.command()
@option("--out", "folder", default="runs", metavar="DIR", help="The folder of runs.")
@option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(folder: str, as_json: bool) -> None:
    """List the runs, sweeps and comparisons of a folder, newest first, with the lines that continue them."""
    from cirkd_ray.report.status import statuses, table

    place = Path(folder).expanduser().absolute()
    found = statuses(place)
    if as_json:
        import json

        from cirkd_ray.files import plain_json

        print(json.dumps([plain_json(each.to_dict()) for each in found], indent=2))
        return
    from cirkd_ray.report.console import output

    output().print(table(found, place))
