"""Evaluate a trained network: whole images or sliding windows, scales and flip, on any number of workers.

Without --data the network is evaluated on its run's validation split. Writes evaluation.json, evaluation.md,
the confusion matrix and the worst images.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.commands._evaluation import add_evaluation, make_job, warn

if TYPE_CHECKING:
    from cirkd_ray.evaluate.saved import EvaluationJob
    from cirkd_ray.report.evaluation import Evaluation

HELP = "evaluate a trained network on a data set"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_evaluation(parser)
    parser.add_argument(
        "--boundary", action="store_true", help="also boundary IoU (2%% of the diagonal wide)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="Ray workers (default 0: this process)"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples of the interval; 0: none"
    )
    parser.add_argument(
        "--worst", type=int, default=8, metavar="N", help="how many of the worst images to show"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the report goes (default: RUN/eval/DATA-SPLIT, or runs/ for other models)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the report, print it."""
    import json

    from cirkd_ray.files import require_writable
    from cirkd_ray.report.console import output
    from cirkd_ray.report.tables import per_class

    job = make_job(args)
    folder = Path(args.out).expanduser() if args.out else _default_folder(args.model, job)
    require_writable(folder)
    evaluation = evaluate_job(job, args.workers, bootstrap=args.bootstrap, worst=args.worst)
    warn(evaluation.subject.warnings)
    if args.json:
        print(json.dumps(evaluation.to_dict(), allow_nan=False))
        evaluation.write(folder)
        return 0
    console = output()
    console.print(per_class(evaluation.result).rich())
    console.print(evaluation.scores().rich())
    console.print(evaluation.speed(), highlight=False)
    console.print(f"report: {evaluation.write(folder)[1]}", highlight=False)
    return 0


def evaluate_job(job: EvaluationJob, workers: int = 0, *, bootstrap: int = 0, worst: int = 0) -> Evaluation:
    """Do the job here (0 workers) or on Ray workers, and collect what its report needs."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.bootstrap import bootstrap_miou
    from cirkd_ray.evaluate.saved import Evaluator, worst_images
    from cirkd_ray.report.evaluation import Evaluation
    from cirkd_ray.report.progress import bar

    if workers < 0 or bootstrap < 0 or worst < 0:
        raise ConfigError("--workers, --bootstrap and --worst cannot be negative")
    place: AbstractContextManager[Any]
    if workers:
        from cirkd_ray.cluster.evaluate import ray_evaluator

        place = ray_evaluator(job, workers)
    else:
        place = nullcontext(Evaluator(job))
    with place as evaluator:
        subject = evaluator.subject()
        with bar(subject.images, "evaluating") as advance:
            result = evaluator.evaluate(on_images=advance)
        chosen = worst_images(result, worst)
        pictures = evaluator.pictures([index for index, _ in chosen])
    interval = None
    if bootstrap and result.per_image is not None:
        interval = bootstrap_miou(result.per_image, resamples=bootstrap)
    return Evaluation(job, subject, result, interval, chosen, pictures)


def _default_folder(model: str, job: EvaluationJob) -> Path:
    """Evaluations of several models, or of one that looks at the images in different ways, do not overwrite
    each other.
    """
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
