"""`cirkd eval`."""

from __future__ import annotations

from typing import Any

import click
from click import option

from cirkd_ray.commands._evaluation import Chosen, data_options, evaluate_job, model_options, warn
from cirkd_ray.commands._options import NOT_NEGATIVE, anywhere, out_folder, out_option, uploaded


@click.command()
@model_options()
@data_options()
@option("--boundary", is_flag=True, help="Also boundary IoU (2% of the diagonal wide).")
@option("--workers", type=NOT_NEGATIVE, default=0, help="Ray workers (0: this process).")
@option("--bootstrap", type=NOT_NEGATIVE, default=1000, help="Resamples of the interval (0: none).")
@option("--worst", type=NOT_NEGATIVE, default=8, help="How many worst images to show.")
@out_option(
    "Where the report goes (default: RUN/eval/DATA-SPLIT, for other models runs/).", callback=anywhere
)
@option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
def command(
    boundary: bool, workers: int, bootstrap: int, worst: int, out: str | None, as_json: bool, **chosen: Any
) -> None:
    """Evaluate a trained network: whole images or sliding windows, scales and flip, on any number of workers.

    Without --data the network is evaluated on its run's validation split. Writes evaluation.json,
    evaluation.md, the confusion matrix and the worst images.
    """
    import json

    from cirkd_ray.files import remove_old, require_writable
    from cirkd_ray.remote.copies import address
    from cirkd_ray.report.console import output
    from cirkd_ray.report.evaluation import REPORT_FILES, usual_folder
    from cirkd_ray.report.tables import per_class

    network = Chosen(**chosen)
    job = network.job(boundary)
    folder = out_folder(out) if out else usual_folder(str(network.model), job)
    require_writable(folder)
    with uploaded(folder):
        remove_old(*(folder / name for name in REPORT_FILES))
        evaluation = evaluate_job(job, workers, bootstrap=bootstrap, worst=worst)
        written = evaluation.write(folder)[1]
    warn(evaluation.subject.warnings)
    if as_json:
        print(json.dumps(evaluation.to_dict(), allow_nan=False))
        return
    console = output()
    console.print(per_class(evaluation.result).rich())
    console.print(evaluation.scores().rich())
    console.print(evaluation.speed(), highlight=False)
    console.print(f"report: {address(written)}", highlight=False)
