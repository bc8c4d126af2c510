"""`cirkd eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cirkd_ray.commands._evaluation import Chosen, data_options, evaluate_job, model_options, warn
from cirkd_ray.commands._options import NOT_NEGATIVE

if TYPE_CHECKING:
    from cirkd_ray.evaluate.saved import EvaluationJob


@click.command()
@model_options()
@data_options()
@click.option("--boundary", is_flag=True, help="Also boundary IoU (2% of the diagonal wide).")
@click.option("--workers", type=NOT_NEGATIVE, default=0, metavar="N", help="Ray workers (0: this process).")
@click.option(
    "--bootstrap", type=NOT_NEGATIVE, default=1000, metavar="N", help="Resamples of the interval (0: none)."
)
@click.option("--worst", type=NOT_NEGATIVE, default=8, metavar="N", help="How many worst images to show.")
@click.option(
    "--out",
    metavar="DIR",
    help="Where the report goes (default: RUN/eval/DATA-SPLIT, or runs/ for other models).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
def command(
    boundary: bool, workers: int, bootstrap: int, worst: int, out: str | None, as_json: bool, **chosen: Any
) -> None:
    """Evaluate a trained network: whole images or sliding windows, scales and flip, on any number of workers.

    Without --data the network is evaluated on its run's validation split. Writes evaluation.json,
    evaluation.md, the confusion matrix and the worst images.
    """
    import json

    from cirkd_ray.files import require_writable
    from cirkd_ray.report.console import output
    from cirkd_ray.report.tables import per_class

    job = Chosen(**chosen).job(boundary)
    folder = Path(out).expanduser() if out else _default_folder(chosen["model"], job)
    require_writable(folder)
    evaluation = evaluate_job(job, workers, bootstrap=bootstrap, worst=worst)
    warn(evaluation.subject.warnings)
    if as_json:
        print(json.dumps(evaluation.to_dict(), allow_nan=False))
        evaluation.write(folder)
        return
    console = output()
    console.print(per_class(evaluation.result).rich())
    console.print(evaluation.scores().rich())
    console.print(evaluation.speed(), highlight=False)
    console.print(f"report: {evaluation.write(folder)[1]}", highlight=False)


def _default_folder(model: str, job: EvaluationJob) -> Path:
    """A folder for each model and each way in which it looks at the images: none overwrites another."""
    from cirkd_ray.evaluate.saved import is_run

    views = job.views
    parts = [job.data, job.split]
    parts += ["scales", *(f"{scale:g}" for scale in views.scales)] if views.scales != (1.0,) else []
    parts += ["flip"] if views.flip else []
    parts += ["window", _by(views.window.size)] if views.window else []
    parts += ["stride", _by(views.window.stride)] if views.window and views.window.stride else []
    parts += [views.average] if views.average != "logits" else []
    parts += [job.precision] if job.precision != "fp32" else []
    parts += ["first", str(job.limit)] if job.limit else []
    name = "-".join(parts)
    if is_run(model):
        return Path(model) / "eval" / name
    return Path("runs") / f"eval-{_model_name(Path(model).expanduser().absolute())}-{name}"


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _model_name(path: Path) -> str:
    """A model's name for its reports; that of the folder for an export's files, all named alike."""
    from cirkd_ray.weights.card import CARD_FILE, WEIGHTS_FILE

    if path.name in (CARD_FILE, WEIGHTS_FILE):
        return path.parent.name
    return path.name if path.is_dir() else path.stem
