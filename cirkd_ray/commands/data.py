"""Data sets: check the files, convert them for fast training, download them, look at them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from cirkd_ray.data import SegmentationDataset
    from cirkd_ray.data_tools.check import Report
    from cirkd_ray.data_tools.get import Progress
    from cirkd_ray.errors import DataError

HELP = "check, prepare, get and show data sets"
_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """`check`, `prepare`, `get`, `show`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    check = actions.add_parser("check", help="read every file and report all that is wrong (exit code 1)")
    _add_source(check)
    check.add_argument("--json", metavar="FILE", help="write the whole report, every finding in it")

    check.add_argument(
        "--most-ignored",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of ignored pixels above which a split is reported (default: 0.4)",
    )

    prepare = actions.add_parser(
        "prepare",
        help="convert into the form that trains fastest; run it again to go on where it stopped",
        description="The result takes the original's place: the same data set, data.root=OUT.",
    )
    _add_source(prepare)
    prepare.add_argument("out", metavar="OUT", help="folder or URL (s3://...) to write")
    prepare.add_argument("--quality", type=int, default=95, metavar="N", help="of JPEG, 1..100 (default: 95)")
    prepare.add_argument("--lossless", action="store_true", help="PNG instead of JPEG: larger and slower")
    prepare.add_argument(
        "--tile", type=int, default=256, metavar="PIXELS", help="side of a tile (default: 256)"
    )
    prepare.add_argument("--max-size", type=int, metavar="PIXELS", help="scale longer sides down to this")
    prepare.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out and list what is missing or cannot be read (tried again each time)",
    )

    get = actions.add_parser("get", help="download camvid, voc, ade20k or coco_stuff_164k")
    get.add_argument("name", metavar="DATASET")
    get.add_argument("root", metavar="ROOT", help="folder to make")
    get.add_argument("--mirror", default="", metavar="URL", help="a place that holds the same archives")
    get.add_argument("--delete-archives", action="store_true", help="once they are unpacked")

    show = actions.add_parser("show", help="write a contact sheet: images, labels over them, classes")
    _add_source(show, root_needed=False)
    show.add_argument("--count", type=int, default=9, metavar="N", help="how many samples (default: 9)")
    show.add_argument("--start", type=int, metavar="INDEX", help="the first of them (default: spread evenly)")
    show.add_argument("--augmented", action="store_true", help="training crops instead of whole images")
    show.add_argument(
        "--out", default="sheet.png", metavar="FILE", help="picture to write (default: sheet.png)"
    )


def _add_source(parser: argparse.ArgumentParser, root_needed: bool = True) -> None:
    parser.add_argument("name", metavar="DATASET")
    parser.add_argument("root", metavar="ROOT", nargs=None if root_needed else "?", help="folder or URL")
    usual = "repeatable (default: train and val)" if root_needed else "which one (default: val)"
    parser.add_argument("--split", action="append", metavar="NAME", help=usual)
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the set",
    )
    if root_needed:
        parser.add_argument("--workers", type=int, metavar="N", help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""
    actions = {"check": _check, "prepare": _prepare, "get": _get, "show": _show}
    return actions[args.action](args)


def _check(args: argparse.Namespace) -> int:
    import json

    from cirkd_ray.data_tools.check import check, missing_split
    from cirkd_ray.errors import DataError
    from cirkd_ray.report.progress import bar

    console, failed = _console(), dict[str, DataError]()
    splits = _splits(args, failed=failed)
    reports = {split: missing_split(error) for split, error in failed.items()}
    for split, report in reports.items():
        _print_findings(console, f"{args.name}, {split}", report)
    for split, data in splits.items():
        with bar(len(data), f"check {split}") as advance:
            most = args.most_ignored
            reports[split] = check(
                data, _workers(args), advance, training="train" in split, most_ignored=most
            )
        _print_report(console, f"{args.name}, {split}", reports[split])
    if args.json:
        _write(args.json, json.dumps({split: r.to_dict() for split, r in reports.items()}, indent=1).encode())
        console.print(f"report: {args.json}", highlight=False)
    return 0 if all(report.sound for report in reports.values()) else 1


def _prepare(args: argparse.Namespace) -> int:
    from cirkd_ray.data import DATASETS
    from cirkd_ray.data_tools.prepare import Encoding, prepare
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.progress import bar

    if not 1 <= args.quality <= 100 or args.tile < 16 or (args.max_size is not None and args.max_size < 16):
        raise ConfigError("--quality is 1..100, --tile and --max-size are at least 16 pixels")
    splits, settings = _splits(args, holes=args.skip_bad), _settings(args.name, args.settings)
    for key in getattr(DATASETS.get(args.name), "stored_only", ()):
        settings.pop(key, None)  # how files are stored does not change what a label means
    encoding = Encoding(None if args.lossless else args.quality, args.tile, args.max_size)
    with bar(sum(len(data) for data in splits.values()), "prepare") as advance:
        manifest = prepare(
            splits, args.name, settings, args.out, encoding, _workers(args), args.skip_bad, advance
        )
    console = _console()
    for split in splits:
        console.print(f"{split}: {manifest.splits[split]} samples", highlight=False)
    skipped = [pair for split in splits for pair in manifest.skipped.get(split, {}).items()]
    for name, reason in skipped[:_SHOWN]:
        console.print(f"skipped {name}: {reason}", highlight=False, markup=False)
    if len(skipped) > _SHOWN:
        console.print(f"  and {len(skipped) - _SHOWN} more (manifest.json lists all)", highlight=False)
    console.print(f"train with data.name={args.name} data.root={args.out}", highlight=False)
    return 0


def _get(args: argparse.Namespace) -> int:
    from cirkd_ray.data_tools.get import get

    with _steps() as progress:
        root = get(args.name, args.root, args.mirror, not args.delete_archives, progress=progress)
    _console().print(f"{root}: now `cirkd data check {args.name} {root}`", highlight=False)
    return 0


def _show(args: argparse.Namespace) -> int:
    import cv2
    import numpy as np

    from cirkd_ray.data.base import DATASETS, Sample
    from cirkd_ray.data.sampler import sample_rng
    from cirkd_ray.data.transforms import TrainTransform
    from cirkd_ray.data_tools.show import Bad, contact_sheet
    from cirkd_ray.errors import ConfigError, DataError, TransientError

    ((split, data),) = _splits(args, default=("val",), single=True).items()
    count = min(args.count, len(data))
    if count < 1 or (args.start is not None and not 0 <= args.start < len(data)):
        raise ConfigError(f"--count is at least 1 and --start below the {len(data)} samples of {split}")
    spread = np.linspace(0, len(data) - 1, count).astype(int).tolist()
    numbers = spread if args.start is None else range(args.start, min(args.start + count, len(data)))
    samples: list[Sample | Bad] = []
    for n in numbers:
        try:
            sample = data.load(n)
        except TransientError:
            raise
        except DataError as error:
            samples.append(Bad(data.name(n), str(error)))
            continue
        if args.augmented:
            image, label = TrainTransform(crop=DATASETS.get(args.name).default_crop)(sample, sample_rng(0, n))
            sample = Sample(image, label, sample.name)
        samples.append(sample)
    sheet = contact_sheet(samples, data.classes)
    _write(args.out, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    console, bad = _console(), [sample for sample in samples if isinstance(sample, Bad)]
    for item in bad:
        console.print(f"bad: {item.reason}", highlight=False, markup=False)
    if bad:
        console.print(f"`{data.check_command}` finds all bad files", highlight=False, markup=False)
    console.print(f"{len(samples)} of the {len(data)} samples of {split}: {args.out}", highlight=False)
    return 1 if bad else 0


def _splits(
    args: argparse.Namespace,
    default: Sequence[str] = ("train", "val"),
    single: bool = False,
    failed: dict[str, DataError] | None = None,
    holes: bool = False,
) -> dict[str, SegmentationDataset]:
    """The chosen splits.

    With `holes` they are built although files of theirs are missing. So they are where `failed` is given; the
    errors of those that cannot be built nevertheless are put there, unless that is so of all.
    """
    from cirkd_ray.data import DATASETS, build_dataset
    from cirkd_ray.data.prepared import find_manifest
    from cirkd_ray.errors import ConfigError, DataError, TransientError

    settings = _settings(args.name, args.settings)
    chosen = args.split or list(default)
    if single and len(chosen) > 1:
        raise ConfigError("give one --split to show")
    fields = DATASETS.settings(args.name).model_fields
    holes = (holes or failed is not None) and "subset" in fields
    if holes and (args.root is None or find_manifest(args.root) is None):
        settings["subset"] = True
    built: dict[str, SegmentationDataset] = {}
    for split in chosen:
        try:
            built[split] = build_dataset(args.name, split=split, root=args.root, where="--set", **settings)
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


def _workers(args: argparse.Namespace) -> int:
    """Threads to use."""
    import os

    from cirkd_ray.errors import ConfigError

    if args.workers is not None and args.workers < 1:
        raise ConfigError("--workers is at least 1")
    return args.workers or len(os.sched_getaffinity(0))


def _write(path: str, content: bytes) -> None:
    """Write a result."""
    from cirkd_ray.data.storage import LocalStorage

    target = Path(path).expanduser()
    LocalStorage(target.parent).write(target.name, content)


def _console() -> Console:
    from cirkd_ray.report.console import output

    return output()


@contextmanager
def _steps() -> Iterator[Progress | None]:
    """A bar for each step of a download, on terminals only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    tasks: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def tell(text: str, done: int, total: int | None) -> None:
            if text not in tasks:
                tasks[text] = progress.add_task(text, total=total)
            progress.update(tasks[text], completed=done, total=total)

        yield tell


def _print_report(console: Console, title: str, report: Report) -> None:
    """Classes, sizes and findings."""
    from cirkd_ray.report.tables import TextTable

    total = int(report.pixels.sum()) + report.ignored
    rows = [
        (name, f"{100 * int(pixels) / max(1, total):.3f} %", str(int(images)))
        for name, pixels, images in zip(report.classes, report.pixels, report.seen, strict=True)
    ]
    rows.append(("ignored", f"{100 * report.ignored / max(1, total):.3f} %", ""))
    console.print(TextTable(("class", "pixels", "images"), tuple(rows), title).rich())
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

    counts = Counter(finding.kind for finding in report.findings)
    for kind, count in counts.items():
        console.print(f"{title}, {kind}: {count}", style="red", highlight=False)
    # What is said once is about the whole split: it must not drown in thousands of missing files.
    for finding in sorted(report.findings, key=lambda found: counts[found.kind])[:_SHOWN]:
        console.print(f"  {finding.message}", highlight=False, markup=False)
    if len(report.findings) > _SHOWN:
        console.print(f"  and {len(report.findings) - _SHOWN} more (--json FILE lists all)", highlight=False)
