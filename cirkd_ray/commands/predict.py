"""`cirkd predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import argument, option

from cirkd_ray.commands._evaluation import Chosen, data_options, evaluate_job, model_options, warn
from cirkd_ray.commands._options import (
    COUNT,
    Words,
    anywhere,
    local,
    out_folder,
    out_option,
    several,
    uploaded,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cirkd_ray.data.base import SegmentationDataset
    from cirkd_ray.evaluate.predict import ImageToPredict, Reading

FORMS = ("colors", "blends", "ids")
SHOWN = 20


@click.command()
@model_options(optional=True)
@argument("inputs", nargs=-1, metavar="[IMAGE]...", help="Image files, or folders of them.")
@data_options(evaluated=", with --worst")
@option("--upright", is_flag=True, help="Turn photos as their orientation tags say.")
@option(
    "--range",
    "span",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Values of 16-bit and float images that become black and white (default: the model's, or measured).",
)
@out_option(default="predictions", callback=anywhere, help="Where pictures are written.")
@several(
    "--write",
    "forms",
    type=click.Choice(FORMS),
    metavar="FORM...",
    help="Colors, blends, ids (default: all).",
)
@option(
    "--submission", callback=local, metavar="ZIP", help="Write a zip file for the Cityscapes test server."
)
@option("--check-submission", metavar="ZIP", help="Check such a zip file, or a folder of PNGs.")
@option("--worst", type=COUNT, help="A picture of the N worst images of a labelled split.")
def command(
    inputs: Words,
    out: str,
    forms: Words,
    submission: str | None,
    check_submission: str | None,
    worst: int | None,
    upright: bool,
    span: tuple[float, float] | None,
    **options: Any,
) -> int:
    """Predict images: colour masks, blends and class indices of files, folders or a whole split.

    \b
    cirkd predict RUN photos/ street.jpg --out predictions
    cirkd predict RUN --data cityscapes --root DIR --split test --submission cityscapes.zip
    cirkd predict --check-submission cityscapes.zip --data cityscapes --root DIR
    cirkd predict RUN --worst 12

    --worst evaluates the run on its validation split and shows the images that it does worst on. The exit
    code is 1 where something was wrong with images.
    """
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.predict import Reading

    chosen, folder = Chosen(**options), out_folder(out)
    if check_submission:
        return _check(check_submission, chosen)
    if chosen.model is None:
        raise ConfigError("MODEL: give a run's folder or an exported model")
    if worst is None:
        if not inputs and (upright or span):
            raise ConfigError(
                "--upright, --range: only for image files; a data set says how its own are read"
            )
        if span and not span[0] < span[1]:
            raise ConfigError("--range: LOW must be below HIGH")
        with uploaded(folder):
            return _predict(chosen, inputs, folder, forms, submission, Reading(span, upright))
    if inputs:
        raise ConfigError("--worst: takes no images; it looks for them in a labelled split")
    with uploaded(folder):
        return _worst(chosen, worst, folder)


def _predict(
    chosen: Chosen,
    inputs: Sequence[str],
    folder: Path,
    forms: Sequence[str],
    target: str | None,
    reading: Reading,
) -> int:
    """Predict files, folders or a split; write the pictures and the submission."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.predict import Predictor
    from cirkd_ray.evaluate.submission import Submission, check_submission, refuse_scaled, server_names
    from cirkd_ray.remote.copies import address
    from cirkd_ray.report.console import output
    from cirkd_ray.report.predictions import without_old, write_prediction
    from cirkd_ray.report.progress import bar

    if chosen.batch_size is not None or chosen.loaders is not None:
        raise ConfigError(
            "--batch-size, --loaders: go with --worst N only; predictions are made image by image"
        )
    total, sources, dataset, paths = _sources(chosen, inputs, folder, target is not None, reading)
    names = server_names(dataset) if target else []
    if target:
        refuse_scaled(dataset)
    predictor = Predictor.load(
        str(chosen.model),
        network=chosen.network,
        dataset=dataset,
        device=chosen.device,
        precision=chosen.precision,
        views=chosen.views(),
    )
    warn(predictor.warnings)
    reading.span = reading.span or predictor.span
    reading.measure(paths)
    forms = forms or (() if target else FORMS)
    done, failures = 0, list[str]()
    with Submission(target) if target else nullcontext() as archive, bar(total, "predicting") as advance:
        for prediction in predictor.predict(without_old(sources, folder, forms), failures):
            write_prediction(folder, prediction, predictor.classes, forms)
            if archive is not None:
                archive.add(prediction.name, prediction.labels)
            done += 1
            advance(1)
    console = output(highlight=False)
    for failure in failures:
        console.print(f"skipped {failure}", markup=False)
    warn(reading.told())
    skipped = f", {len(failures)} skipped" if failures else ""
    places = [address(folder / form) for form in forms] + ([target] if target else [])
    console.print(f"{done} images predicted{skipped}: {', '.join(places)}", markup=False)
    bad = _report(target, check_submission(target, names), console) if target else 0
    return max(bad, int(bool(failures)))


def _sources(
    chosen: Chosen, inputs: Sequence[str], folder: Path, for_server: bool, reading: Reading
) -> tuple[int, Iterator[ImageToPredict], SegmentationDataset | None, Sequence[Path]]:
    """How many images, the images, and the data set or the files that they are of."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.predict import find_images, read_dataset, read_files

    if inputs:
        if chosen.data or for_server:
            raise ConfigError("IMAGES: give either these or a data set (--data, --submission), not both")
        files = [found for found in find_images(inputs) if not _is_written(found[0], folder)][: chosen.limit]
        return len(files), read_files(files, reading), None, [path for path, _ in files]
    if not (chosen.data or chosen.root or chosen.split or for_server or chosen.overrides):
        raise ConfigError("IMAGES: give files or folders, or --split val for a split of the run's data")
    dataset = _dataset(chosen, for_server)
    total = len(dataset) if chosen.limit is None else min(chosen.limit, len(dataset))
    return total, read_dataset(dataset, chosen.limit), dataset, ()


def _is_written(image: Path, folder: Path) -> bool:
    """Whether an image lies where predictions are written, so that it is one of before."""
    return any((folder / form).resolve() in image.resolve().parents for form in FORMS)


def _dataset(chosen: Chosen, for_server: bool) -> SegmentationDataset:
    """The split that the options name: of a submission, the test split of Cityscapes."""
    from cirkd_ray.data import build_dataset

    if for_server and chosen.data is None:
        chosen = replace(chosen, data="cityscapes")
    data = chosen.data_settings()
    usual = data.pop("val_split", None) or "val"
    split = chosen.split or ("test" if for_server else usual)
    dataset = build_dataset(data.pop("name"), split=split, root=data.pop("root", None), **data)
    if chosen.model is not None:
        chosen.hold(dataset, split)
    return dataset


def _worst(chosen: Chosen, count: int, folder: Path) -> int:
    """Evaluate, and show the images with the lowest mean IoU."""
    from cirkd_ray.data_tools.pictures import save_picture
    from cirkd_ray.errors import DataError
    from cirkd_ray.files import remove_old, require_writable
    from cirkd_ray.remote.copies import address
    from cirkd_ray.report.console import output

    require_writable(folder)
    path = folder / "worst.png"
    remove_old(path)
    evaluation = evaluate_job(chosen.job(), worst=count)
    warn(evaluation.subject.warnings)
    if not evaluation.worst:
        job = evaluation.job
        raise DataError(f"--worst: no image of the split {job.split!r} of {job.data} has a labelled pixel")
    save_picture(path, evaluation.worst_picture())
    console = output(highlight=False)
    for index, score in evaluation.worst:
        over, sample = evaluation.result.classes_of_image(index), evaluation.result.names[index]
        console.print(f"{score * 100:6.2f} % ({over})  {sample}", markup=False)
    console.print(f"picture: {address(path)}", markup=False)
    return 0


def _check(path: str, chosen: Chosen) -> int:
    """Check a submission against the split's images."""
    from cirkd_ray.data.cityscapes import Cityscapes
    from cirkd_ray.data.files import packaged_list
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.evaluate.submission import check_submission, server_names
    from cirkd_ray.report.console import output

    if chosen.data not in (None, "cityscapes"):
        raise ConfigError(f"--check-submission: only Cityscapes has such a server, not {chosen.data}")
    split = chosen.split or "test"
    if split not in Cityscapes.splits:
        raise ConfigError(f"--split: Cityscapes has no split {split!r}{nearest(split, Cityscapes.splits)}")
    names = (
        server_names(_dataset(chosen, for_server=True)) if chosen.root else packaged_list("cityscapes", split)
    )
    return _report(path, check_submission(path, names), output(highlight=False))


def _report(path: str, problems: Sequence[str], console: Console) -> int:
    """Say what is wrong with a submission; returns the exit code."""
    for problem in problems[:SHOWN]:
        console.print(problem, markup=False)
    if len(problems) > SHOWN:
        console.print(f"... and {len(problems) - SHOWN} more")
    console.print(f"{path}: {len(problems)} problems" if problems else f"{path}: fit to send", markup=False)
    return int(bool(problems))
