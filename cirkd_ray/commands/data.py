"""`cirkd data`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cirkd_ray.commands._options import COUNT, Decorator, settings, together

if TYPE_CHECKING:
    from rich.console import Console

    from cirkd_ray.data import SegmentationDataset
    from cirkd_ray.data_tools.check import Report
    from cirkd_ray.errors import DataError

_SHOWN = 20


def _source(split: str = "Repeatable (default: train and val).", root_needed: bool = True) -> Decorator:
    """DATASET, ROOT, `--split` and `--set`."""
    root = "ROOT" if root_needed else "[ROOT]"
    return together(
        click.argument("name", metavar="DATASET"),
        click.argument("root", metavar=root, required=root_needed, help="Folder or URL."),
        click.option("--split", "chosen", multiple=True, metavar="NAME", help=split),
        settings("NAME=VALUE", "A setting of the set (repeatable)."),
    )


_workers = click.option("--workers", type=COUNT, metavar="N", help="Threads (default: one a core).")


@click.group()
def command() -> None:
    """Data sets: check the files, convert them for fast training, download them, look at them."""


@command.command()
@_source()
@_workers
@click.option("--json", "target", metavar="FILE", help="Write the whole report, every finding in it.")
def check(
    name: str,
    root: str,
    chosen: tuple[str, ...],
    overrides: tuple[str, ...],
    workers: int | None,
    target: str | None,
) -> int:
    """Read every file and report all that is wrong (exit code 1)."""
    import json

    from cirkd_ray.data_tools.check import check, missing_split
    from cirkd_ray.errors import DataError
    from cirkd_ray.report.bar import bar
    from cirkd_ray.report.console import output

    console, failed = output(), dict[str, DataError]()
    splits = _splits(name, root, chosen or ("train", "val"), _settings(name, overrides), failed=failed)
    reports = {split: missing_split(error) for split, error in failed.items()}
    for split, report in reports.items():
        _print_findings(console, f"{name}, {split}", report)
    for split, data in splits.items():
        with bar(len(data), f"check {split}") as advance:
            reports[split] = check(data, workers or _cores(), advance)
        _print_report(console, f"{name}, {split}", reports[split])
    if target:
        _write(target, json.dumps({split: r.to_dict() for split, r in reports.items()}, indent=1).encode())
        console.print(f"report: {target}", highlight=False)
    return 0 if all(report.sound for report in reports.values()) else 1


@command.command()
@_source()
@_workers
@click.argument("out", metavar="OUT", help="Folder or URL (s3://...) to write.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, metavar="N", help="Of JPEG.")
@click.option("--lossless", is_flag=True, help="PNG instead of JPEG: larger and slower.")
@click.option("--tile", type=click.IntRange(16), default=256, metavar="PIXELS", help="Side of a tile.")
@click.option(
    "--max-size", type=click.IntRange(16), metavar="PIXELS", help="Scale longer sides down to this."
)
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out and list what is missing or cannot be read (tried again each time).",
)
def prepare(
    name: str,
    root: str,
    chosen: tuple[str, ...],
    overrides: tuple[str, ...],
    workers: int | None,
    out: str,
    quality: int,
    lossless: bool,
    tile: int,
    max_size: int | None,
    skip_bad: bool,
) -> None:
    """Convert into the form that trains fastest, or resume that.

    The same command again resumes where it stopped. The result takes the original's place: the same data set, data.root=OUT.
    """
    from cirkd_ray.data_tools.prepare import Encoding, prepare
    from cirkd_ray.report.bar import bar
    from cirkd_ray.report.console import output

    values = _settings(name, overrides)
    splits = _splits(name, root, chosen or ("train", "val"), values, holes=skip_bad)
    values.pop("subset", None)  # which files were there does not change what a label means
    encoding = Encoding(None if lossless else quality, tile, max_size)
    with bar(sum(len(data) for data in splits.values()), "prepare") as advance:
        manifest = prepare(splits, name, values, out, encoding, workers or _cores(), skip_bad, advance)
    console = output()
    for split in splits:
        console.print(f"{split}: {manifest.splits[split]} samples", highlight=False)
    skipped = [pair for split in splits for pair in manifest.skipped.get(split, {}).items()]
    for sample, reason in skipped[:_SHOWN]:
        console.print(f"skipped {sample}: {reason}", highlight=False, markup=False)
    if len(skipped) > _SHOWN:
        console.print(f"  and {len(skipped) - _SHOWN} more (manifest.json lists all)", highlight=False)
    console.print(f"train with data.name={name} data.root={out}", highlight=False)


@command.command()
@click.argument("name", metavar="DATASET")
@click.argument("root", metavar="ROOT", help="Folder to make.")
@click.option("--mirror", metavar="URL", help="A place that holds the same archives.")
@click.option("--delete-archives", is_flag=True, help="Once they are unpacked.")
def get(name: str, root: str, mirror: str | None, delete_archives: bool) -> None:
    """Download camvid, voc, ade20k or coco_stuff_164k."""
    from cirkd_ray.data_tools.get import get
    from cirkd_ray.report.bar import steps
    from cirkd_ray.report.console import output

    with steps() as progress:
        place = get(name, root, mirror or "", not delete_archives, progress=progress)
    output().print(f"{place}: now `cirkd data check {name} {place}`", highlight=False)


@command.command()
@_source("Which one (default: val).", root_needed=False)
@click.option("--count", type=COUNT, default=9, metavar="N", help="How many samples.")
@click.option(
    "--start", type=click.IntRange(0), metavar="INDEX", help="The first of them (default: spread evenly)."
)
@click.option("--augmented", is_flag=True, help="Training crops instead of whole images.")
@click.option("--out", default="sheet.png", metavar="FILE", help="Picture to write.")
def show(
    name: str,
    root: str | None,
    chosen: tuple[str, ...],
    overrides: tuple[str, ...],
    count: int,
    start: int | None,
    augmented: bool,
    out: str,
) -> None:
    """Write a contact sheet: images, labels over them, classes."""
    import cv2
    import numpy as np

    from cirkd_ray.data.base import DATASETS, Sample
    from cirkd_ray.data.sampler import sample_rng
    from cirkd_ray.data.transforms import TrainTransform
    from cirkd_ray.data_tools.show import contact_sheet
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.console import output

    if len(chosen) > 1:
        raise ConfigError("give one --split to show")
    ((split, data),) = _splits(name, root, chosen or ("val",), _settings(name, overrides)).items()
    if not 0 <= (start or 0) < len(data):
        raise ConfigError(f"--start is below the {len(data)} samples of {split}")
    count = min(count, len(data))
    spread = np.linspace(0, len(data) - 1, count).astype(int).tolist()
    numbers = spread if start is None else range(start, min(start + count, len(data)))
    samples = []
    for n in numbers:
        sample = data.load(n)
        if augmented:
            image, label = TrainTransform(crop=DATASETS.get(name).default_crop)(sample, sample_rng(0, n))
            sample = Sample(image, label, sample.name)
        samples.append(sample)
    sheet = contact_sheet(samples, data.classes)
    _write(out, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    output().print(f"{len(samples)} of the {len(data)} samples of {split}: {out}", highlight=False)


def _splits(
    name: str,
    root: str | None,
    chosen: Sequence[str],
    values: dict[str, Any],
    failed: dict[str, DataError] | None = None,
    holes: bool = False,
) -> dict[str, SegmentationDataset]:
    """The chosen splits.

    With `holes` they are built although files of theirs are missing. So they are where `failed` is given; the
    errors of those that cannot be built nevertheless are put there, unless that is so of all.
    """
    from cirkd_ray.data import DATASETS, build_dataset
    from cirkd_ray.data.prepared import find_manifest
    from cirkd_ray.errors import DataError, TransientError

    holes = (holes or failed is not None) and "subset" in DATASETS.settings(name).model_fields
    if holes and (root is None or find_manifest(root) is None):
        values = {**values, "subset": True}
    built: dict[str, SegmentationDataset] = {}
    for split in chosen:
        try:
            built[split] = build_dataset(name, split=split, root=root, where="--set", **values)
        except TransientError:
            raise
        except DataError as error:
            if failed is None:
                raise
            failed[split] = error
    if failed and not built:
        raise next(iter(failed.values()))
    return built


def _settings(name: str, given: Sequence[str]) -> dict[str, Any]:
    """All settings of the data set, with those of the command line, checked."""
    from cirkd_ray.config.composition import overrides_from
    from cirkd_ray.config.registry import validate
    from cirkd_ray.data import DATASETS

    values = {key.removeprefix("data."): value for key, value in overrides_from(given).items()}
    return validate(DATASETS.settings(name), values, "--set").model_dump()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write(path: str, content: bytes) -> None:
    """Write a result."""
    from cirkd_ray.data.storage import LocalStorage

    target = Path(path).expanduser()
    LocalStorage(target.parent).write(target.name, content)


def _print_report(console: Console, title: str, report: Report) -> None:
    """Classes, sizes and findings."""
    from cirkd_ray.report.tables import Sheet

    total = int(report.pixels.sum()) + report.ignored
    rows = [
        (name, f"{100 * int(pixels) / max(1, total):.3f} %", str(int(images)))
        for name, pixels, images in zip(report.classes, report.pixels, report.seen, strict=True)
    ]
    rows.append(("ignored", f"{100 * report.ignored / max(1, total):.3f} %", ""))
    console.print(Sheet(("class", "pixels", "images"), tuple(rows), title).rich())
    sizes = ", ".join(f"{w}x{h} ({count})" for (h, w), count in report.sizes.most_common(5))
    more = f" and {len(report.sizes) - 5} more" if len(report.sizes) > 5 else ""
    console.print(f"{report.images} good samples; sizes {sizes or 'none'}{more}", highlight=False)
    if report.formats:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.formats.most_common())
        console.print(f"read as 8-bit RGB: {kinds} images", highlight=False)
    if report.turned:
        console.print(f"{report.turned} images carry an orientation that is not applied", highlight=False)
    _print_findings(console, title, report)


def _print_findings(console: Console, title: str, report: Report) -> None:
    """How many of each kind, and the first ones."""
    from collections import Counter

    for kind, count in Counter(finding.kind for finding in report.findings).items():
        console.print(f"{title}, {kind}: {count}", style="red", highlight=False)
    for finding in report.findings[:_SHOWN]:
        console.print(f"  {finding.message}", highlight=False, markup=False)
    if len(report.findings) > _SHOWN:
        console.print(f"  and {len(report.findings) - _SHOWN} more (--json FILE lists all)", highlight=False)
