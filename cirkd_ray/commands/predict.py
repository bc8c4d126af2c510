"""Predict images: colour masks, blends and class indices of files, folders or a whole split.

    cirkd predict RUN photos/ street.jpg --out predictions
    cirkd predict RUN --data cityscapes --root DIR --split test --submission cityscapes.zip
    cirkd predict --check-submission cityscapes.zip --data cityscapes --root DIR
    cirkd predict RUN --worst 12

--worst evaluates the run on its validation split and shows the images that it does worst on.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.commands._evaluation import (
    add_data,
    add_model,
    add_views,
    data_settings,
    make_job,
    make_views,
    warn,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cirkd_ray.data.base import SegmentationDataset
    from cirkd_ray.evaluate.predict import Predictor, Source

HELP = "predict images: colour masks, blends, ids, Cityscapes submissions"
FORMS = ("colors", "blends", "ids")
SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model(parser, optional=True)
    parser.add_argument("inputs", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    add_data(parser, evaluated=", with --worst")
    add_views(parser)
    parser.add_argument("--upright", action="store_true", help="turn photos as their orientation tags say")
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of 16-bit and float images that become black and white (default: from the bits used)",
    )
    parser.add_argument("--out", default="predictions", metavar="DIR", help="default: predictions/")
    parser.add_argument(
        "--write",
        nargs="+",
        choices=FORMS,
        default=None,
        metavar="FORM",
        help="of colors, blends, ids (default: all)",
    )
    parser.add_argument("--submission", metavar="ZIP", help="write a zip file for the Cityscapes test server")
    parser.add_argument(
        "--check-submission", metavar="ZIP", help="check such a zip file, or a folder of PNGs"
    )
    parser.add_argument(
        "--worst", type=int, metavar="N", help="a picture of the N worst images of a labelled split"
    )
    _allow_options_between_images(parser)


def _allow_options_between_images(parser: argparse.ArgumentParser) -> None:
    """Make `predict RUN --out DIR photos/` work: argparse ends a list of arguments at the first option."""
    plain = parser.parse_known_args

    def intermixed(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        parser.parse_known_args = plain  # type: ignore[method-assign]
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            parser.parse_known_args = intermixed  # type: ignore[method-assign, assignment]

    parser.parse_known_args = intermixed  # type: ignore[method-assign, assignment]


def run(args: argparse.Namespace) -> int:
    """Predict, check a submission, or show the worst images; 1 where something was wrong with images."""
    from cirkd_ray.errors import ConfigError

    if args.check_submission:
        return _check(args)
    if args.model is None:
        raise ConfigError("which network? give a run's folder or an exported model")
    if args.worst is not None:
        return _worst(args)
    return _predict(args)


def _predict(args: argparse.Namespace) -> int:
    """Predict files, folders or a split; write the pictures and the submission."""
    from cirkd_ray.evaluate.submission import Submission, check_submission, refuse_scaled, server_names
    from cirkd_ray.report.console import output
    from cirkd_ray.report.predictions import write_prediction
    from cirkd_ray.report.progress import bar

    _refuse_ignored(args)
    notes: Counter[str] = Counter()
    total, sources, dataset = _sources(args, notes)
    names = server_names(dataset) if args.submission else []
    if args.submission:
        refuse_scaled(dataset)
    predictor = _predictor(args, dataset)
    warn(predictor.warnings)
    forms = tuple(args.write or (() if args.submission else FORMS))
    folder, done = Path(args.out).expanduser(), 0
    failures: list[str] = []
    archive = Submission(args.submission) if args.submission else nullcontext()
    with archive as submission, bar(total, "predicting") as advance:
        for prediction in predictor.predict(sources, failures):
            write_prediction(folder, prediction, predictor.classes, forms)
            if submission is not None:
                submission.add(prediction.name, prediction.labels)
            done += 1
            advance(1)
    console = output(highlight=False)
    for failure in failures:
        console.print(f"skipped {failure}", markup=False)
    warn(f"{count} image{'s have' if count > 1 else ' has'} {change}" for change, count in notes.items())
    skipped = f", {len(failures)} skipped" if failures else ""
    places = [str(folder / form) for form in forms] + ([args.submission] if args.submission else [])
    console.print(f"{done} images predicted{skipped}: {', '.join(places)}", markup=False)
    if args.submission:
        return max(
            _report(args.submission, check_submission(args.submission, names), console), bool(failures)
        )
    return int(bool(failures))


def _refuse_ignored(args: argparse.Namespace) -> None:
    """Settings that would change nothing."""
    from cirkd_ray.errors import ConfigError

    if args.batch_size is not None or args.loaders is not None:
        raise ConfigError(
            "--batch-size and --loaders go with --worst N only: predictions are made image by image"
        )
    if args.limit is not None and args.limit < 1:
        raise ConfigError("--limit must be at least 1")
    if not args.inputs and (args.upright or args.range):
        raise ConfigError("--upright and --range go with image files: a data set says how its own are read")
    if args.range and not args.range[0] < args.range[1]:
        raise ConfigError("--range: LOW must be below HIGH")


def _sources(
    args: argparse.Namespace, notes: Counter[str]
) -> tuple[int, Iterator[Source], SegmentationDataset | None]:
    """How many images, the images, and the data set that they are of, if any."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.predict import find_images, read_dataset, read_files

    if args.inputs:
        if args.data or args.submission:
            raise ConfigError("give either images or a data set (--data, --submission), not both")
        files = find_images(args.inputs)[: args.limit]
        span = tuple(args.range) if args.range else None
        return len(files), read_files(files, notes, span, args.upright), None
    if not (args.data or args.root or args.split or args.submission or args.overrides):
        raise ConfigError("which images? give files or folders, or --split val for a split of the run's data")
    dataset = _dataset(args)
    total = len(dataset) if args.limit is None else min(args.limit, len(dataset))
    return total, read_dataset(dataset, args.limit), dataset


def _dataset(args: argparse.Namespace) -> SegmentationDataset:
    """The split that the arguments name: of a submission, the test split of Cityscapes."""
    from cirkd_ray.data import build_dataset

    for_server = args.submission or args.check_submission
    if for_server and args.data is None:
        args.data = "cityscapes"
    data = data_settings(args)
    usual = data.pop("val_split", None) or "val"
    split = args.split or ("test" if for_server else usual)
    return build_dataset(data.pop("name"), split=split, root=data.pop("root", None), **data)


def _predictor(args: argparse.Namespace, dataset: SegmentationDataset | None) -> Predictor:
    from cirkd_ray.evaluate.predict import Predictor

    return Predictor.load(
        args.model,
        network=args.network,
        dataset=dataset,
        device=args.device,
        precision=args.precision,
        views=make_views(args),
    )


def _worst(args: argparse.Namespace) -> int:
    """Evaluate, and show the images with the lowest mean IoU."""
    from cirkd_ray.commands.eval import evaluate_job
    from cirkd_ray.data_tools.pictures import save_picture
    from cirkd_ray.errors import ConfigError, DataError
    from cirkd_ray.files import require_writable
    from cirkd_ray.report.console import output

    if args.inputs or args.worst < 1:
        raise ConfigError(
            "--worst N takes no images, and N must be at least 1: it looks for them in a labelled split"
        )
    require_writable(Path(args.out).expanduser())
    evaluation = evaluate_job(make_job(args), worst=args.worst)
    warn(evaluation.subject.warnings)
    if not evaluation.worst:
        job = evaluation.job
        raise DataError(f"--worst: no image of the split {job.split!r} of {job.data} has a labelled pixel")
    path = Path(args.out).expanduser() / "worst.png"
    save_picture(path, evaluation.worst_picture())
    console = output(highlight=False)
    for index, score in evaluation.worst:
        console.print(f"{score * 100:6.2f} %  {evaluation.result.names[index]}", markup=False)
    console.print(f"picture: {path}", markup=False)
    return 0


def _check(args: argparse.Namespace) -> int:
    """Check a submission against the split's images."""
    from cirkd_ray.data.cityscapes import Cityscapes
    from cirkd_ray.data.files import packaged_list
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.evaluate.submission import check_submission, server_names
    from cirkd_ray.report.console import output

    if args.data not in (None, "cityscapes"):
        raise ConfigError(f"--check-submission: only Cityscapes has such a server, not {args.data}")
    split = args.split or "test"
    if split not in Cityscapes.splits:
        raise ConfigError(f"--split: Cityscapes has no split {split!r}{nearest(split, Cityscapes.splits)}")
    names = server_names(_dataset(args)) if args.root else packaged_list("cityscapes", split)
    problems = check_submission(args.check_submission, names)
    return _report(args.check_submission, problems, output(highlight=False))


def _report(path: str, problems: Sequence[str], console: Console) -> int:
    """Say what is wrong with a submission; returns the exit code."""
    for problem in problems[:SHOWN]:
        console.print(problem, markup=False)
    if len(problems) > SHOWN:
        console.print(f"... and {len(problems) - SHOWN} more")
    console.print(f"{path}: {len(problems)} problems" if problems else f"{path}: fit to send", markup=False)
    return int(bool(problems))
