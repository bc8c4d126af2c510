"""`cirkd status`."""

from __future__ import annotations

from pathlib import Path

import click
from click import argument, option


@click.command()
@argument("folder", metavar="RUN", help="The folder of a run, a sweep or a comparison.")
@option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(folder: str, as_json: bool) -> None:
    """Show how far a run, a sweep or a comparison is, from its folder: wherever it runs.

    State, steps, mIoU, time since its last sign of life, time left, and the line that continues it.
    """
    from cirkd_ray.report.status import lines, read_status

    found = read_status(Path(folder).expanduser().absolute())
    if as_json:
        import json

        from cirkd_ray.files import plain_json

        print(json.dumps(plain_json(found.to_dict()), indent=2))
        return
    print("\n".join(lines(found)))
