"""`cirkd data`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click import argument, option

from cirkd_ray.commands._options import (
    COUNT,
    NOT_NEGATIVE,
    Decorator,
    Number,
    Words,
    local,
    out_option,
    require_file,
    set_option,
    together,
)
from cirkd_ray.commands._progress import steps
from cirkd_ray.remote.address import shown

if TYPE_CHECKING:
    from cirkd_ray.data.base import SegmentationDataset

_SHOWN = 20


def _source(split: str = "Repeatable (default: train and val).", root_needed: bool = True) -> Decorator:
    """DATASET, ROOT, `--split` and `--set`."""
    root = "ROOT" if root_needed else "[ROOT]"
    return together(
        argument("name", metavar="DATASET"),
        argument("root", metavar=root, required=root_needed, help="Folder or URL."),
        option("--split", "chosen", multiple=True, metavar="NAME", help=split),
        set_option("NAME=VALUE", "A setting of the set."),
    )


_workers = option("--workers", type=COUNT, help="Threads (default: one a core).")


@click.group()
def command() -> None:
    """Data sets: check the files, convert them for fast training, download them, look at them."""


@command.command()
@_source()
@_workers
@option(
    "--json", "target", callback=local, metavar="FILE", help="Write the whole report, every finding in it."
)
@option(
    "--most-ignored",
    type=click.FloatRange(0, 1),
    default=0.4,
    metavar="SHARE",
    help="Share of ignored pixels above which a split is reported.",
)
def check(
    name: str,
    root: str,
    chosen: Words,
    overrides: Words,
    workers: int | None,
    target: str | None,
    most_ignored: float,
) -> int:
    """Read every file and report all that is wrong (exit code 1)."""
    import json

    from cirkd_ray.data.palettes import Palettes
    from cirkd_ray.data_tools.check import check, missing_split
    from cirkd_ray.data_tools.splits import build_splits, split_settings
    from cirkd_ray.errors import DataError
    from cirkd_ray.report.console import output
    from cirkd_ray.report.data_check import print_findings, print_report
    from cirkd_ray.report.progress import bar

    require_file("--json", target)
    console, failed, palettes = output(), dict[str, DataError](), Palettes()
    splits = build_splits(
        name, root, chosen or ("train", "val"), split_settings(name, overrides), failed=failed
    )
    reports = {split: missing_split(error) for split, error in failed.items()}
    for split, report in reports.items():
        print_findings(console, f"{name}, {split}", report)
    for split, data in splits.items():
        with bar(len(data), f"check {split}") as advance:
            training = "train" in split
            reports[split] = check(
                data,
                workers or _cores(),
                advance,
                training=training,
                most_ignored=most_ignored,
                palettes=palettes,
            )
        print_report(console, f"{name}, {split}", reports[split])
    if target:
        _write(target, json.dumps({split: r.to_dict() for split, r in reports.items()}, indent=1).encode())
        console.print(f"report: {target}", highlight=False)
    return 0 if all(report.sound for report in reports.values()) else 1


@command.command()
@_source()
@_workers
@argument("out", metavar="OUT", help="Folder or URL (s3://...) to write.")
@option("--quality", type=click.IntRange(1, 100), default=95, metavar="N", help="Of JPEG.")
@option("--lossless", is_flag=True, help="PNG instead of JPEG: larger and slower.")
@option("--tile", type=Number(16), default=256, metavar="PIXELS", help="Side of a tile.")
@option("--max-size", type=Number(16), metavar="PIXELS", help="Scale longer sides down to this.")
@option(
    "--skip-bad",
    is_flag=True,
    help="Leave out and list what is missing or cannot be read (tried again each time).",
)
def prepare(
    name: str,
    root: str,
    chosen: Words,
    overrides: Words,
    workers: int | None,
    out: str,
    quality: int,
    lossless: bool,
    tile: int,
    max_size: int | None,
    skip_bad: bool,
) -> None:
    """Convert into the form that trains fastest, or resume that.

    The same command again resumes where it stopped. The result takes the original's place: the same data set,
    data.root=OUT.
    """
    from cirkd_ray.data import DATASETS
    from cirkd_ray.data_tools.prepare import Encoding, prepare
    from cirkd_ray.data_tools.splits import build_splits, split_settings
    from cirkd_ray.report.console import output
    from cirkd_ray.report.progress import bar

    values = split_settings(name, overrides)
    splits = build_splits(name, root, chosen or ("train", "val"), values, holes=skip_bad)
    apart = getattr(DATASETS.get(name), "stored_only", ())  # these do not change what a label means
    stored = {key: values.pop(key) for key in apart if key in values}
    encoding = Encoding(None if lossless else quality, tile, max_size)
    _say_what_is_odd(splits)
    with bar(sum(len(data) for data in splits.values()), "prepare") as advance:
        manifest = prepare(
            splits, name, values, out, encoding, workers or _cores(), skip_bad, advance, stored
        )
    console = output()
    for split in splits:
        console.print(f"{split}: {manifest.splits[split]} samples", highlight=False)
    skipped = [pair for split in splits for pair in manifest.skipped.get(split, {}).items()]
    for sample, reason in skipped[:_SHOWN]:
        console.print(f"skipped {sample}: {reason}", highlight=False, markup=False)
    if len(skipped) > _SHOWN:
        console.print(f"  and {len(skipped) - _SHOWN} more (manifest.json lists all)", highlight=False)
    console.print(f"train with data.name={name} data.root={shown(out)}", highlight=False)


def _say_what_is_odd(splits: Mapping[str, SegmentationDataset]) -> None:
    """What the start of a run on the originals would say: their files no longer tell it once converted."""
    from cirkd_ray.commands._evaluation import warn
    from cirkd_ray.data.facts import look
    from cirkd_ray.data.palettes import Palettes
    from cirkd_ray.errors import DataError, TransientError, first_line

    palettes = Palettes()
    for split, data in splits.items():
        try:
            told = look(data, training="train" in split, palettes=palettes)
        except TransientError:
            raise
        except DataError as error:  # a bad sample ends the conversion, or is left out where that is asked for
            told = (first_line(error),)
        warn(line.removeprefix("warning: ") for line in told)


@command.command()
@argument("name", metavar="DATASET")
@argument("root", callback=local, metavar="ROOT", help="Folder to make.")
@option("--mirror", metavar="URL", help="A place that holds the same archives.")
@option("--delete-archives", is_flag=True, help="Once they are unpacked.")
def get(name: str, root: str, mirror: str | None, delete_archives: bool) -> None:
    """Download camvid, voc, ade20k or coco_stuff_164k."""
    from cirkd_ray.data_tools.get import get
    from cirkd_ray.report.console import output

    with steps() as progress:
        place = get(name, root, mirror or "", not delete_archives, progress=progress)
    output().print(f"{place}: now `cirkd data check {name} {place}`", highlight=False)


@command.command()
@_source("Which one (default: val).", root_needed=False)
@option("--count", type=COUNT, default=9, help="How many samples.")
@option("--start", type=NOT_NEGATIVE, metavar="INDEX", help="The first of them (default: spread evenly).")
@option("--augmented", is_flag=True, help="Training crops instead of whole images.")
@out_option(default="sheet.png", metavar="FILE", help="Picture to write.")
def show(
    name: str,
    root: str | None,
    chosen: Words,
    overrides: Words,
    count: int,
    start: int | None,
    augmented: bool,
    out: str,
) -> int:
    """Write a contact sheet: images, labels over them, classes (exit code 1 where a sample is bad)."""
    import cv2

    from cirkd_ray.data_tools.show import Bad, contact_sheet, pick_samples
    from cirkd_ray.data_tools.splits import build_splits, split_settings
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.console import output

    if len(chosen) > 1:
        raise ConfigError("--split: give one to show")
    ((split, data),) = build_splits(name, root, chosen or ("val",), split_settings(name, overrides)).items()
    if not 0 <= (start or 0) < len(data):
        raise ConfigError(f"--start: must be below the {len(data)} samples of {split}")
    samples = pick_samples(data, count, start, augmented)
    sheet = contact_sheet(samples, data.classes)
    _write(out, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    console, bad = output(highlight=False), [sample for sample in samples if isinstance(sample, Bad)]
    for item in bad:
        console.print(f"bad: {item.reason}", markup=False)
    if bad:
        console.print(f"`{data.check_command}` finds all bad files", markup=False)
    console.print(f"{len(samples)} of the {len(data)} samples of {split}: {out}")
    return int(bool(bad))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write(path: str, content: bytes) -> None:
    """Write a result."""
    from cirkd_ray.data.storage import LocalStorage

    target = Path(path).expanduser()
    LocalStorage(target.parent).write(target.name, content)


@command.command()
@argument("name", required=False, metavar="[DATASET]")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def sets(name: str | None, as_json: bool) -> None:
    """Every data set that can be named, or all settings of one."""
    from cirkd_ray.commands._described import show_entry, show_list
    from cirkd_ray.config.described import entry_of
    from cirkd_ray.config.registry import DATASETS

    if name is not None:
        return show_entry(entry_of(DATASETS, name), as_json)
    return show_list([("data.name", [entry_of(DATASETS, each) for each in DATASETS.names()])], as_json)
