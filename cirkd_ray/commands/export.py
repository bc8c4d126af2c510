"""`cirkd export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click import argument, option

from cirkd_ray.commands._options import COUNT, Words, choice, out_option, set_option, size_option

if TYPE_CHECKING:
    from cirkd_ray.weights.export import ExportOptions
    from cirkd_ray.weights.package import LoadedModel


@click.command()
@argument("path", metavar="PATH", help="A run's folder, its model.json or student.safetensors.")
@choice("--to", "onnx", "torchscript", "torch-export", help="Format of the file.")
@out_option(metavar="FILE", help="Default: beside the weights, named student.")
@option("--no-preprocessing", is_flag=True, help="Take images that are prepared already.")
@option("--scores", is_flag=True, help="Return class scores (N x K x H x W), not labels.")
@option("--static", is_flag=True, help="Fix the batch to 1 and the size to --size.")
@size_option("Of the image that is traced.", default=(256, 512))
@option("--opset", type=int, default=20, metavar="N", help="ONNX operator set.")
@option("--int8", is_flag=True, help="Also a quantised file, compared with the other on labelled images.")
@option("--calibration", type=COUNT, default=64, help="Training images that give its ranges.")
@option("--limit", type=COUNT, help="Validation images that both are compared on (default: all).")
@option("--data", metavar="NAME", help="Data set of these images (default: the run's).")
@option("--root", metavar="DIR", help="The folder that it lies in (default: the run's).")
@set_option(help="Override a setting data.NAME of the data set.")
def command(
    path: str,
    to: Literal["onnx", "torchscript", "torch-export"],
    out: str | None,
    no_preprocessing: bool,
    scores: bool,
    static: bool,
    size: tuple[int, int],
    opset: int,
    int8: bool,
    calibration: int,
    limit: int | None,
    data: str | None,
    root: str | None,
    overrides: Words,
) -> None:
    """Write a trained network as a file that runs without this package, and check the file against PyTorch.

    The graph takes RGB images of 0..255 (N x 3 x H x W, float32) and returns the class of every pixel;
    --no-preprocessing and --scores leave out what stands before and after the network. --int8 writes
    student.int8.onnx beside it: weights and activations of 8 bits, with the mIoU of both files on the run's
    validation split and the ratio of their times on this machine.
    """
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.files import remove_old
    from cirkd_ray.weights.export import SUFFIXES, ExportOptions, export_model
    from cirkd_ray.weights.open import open_network
    from cirkd_ray.weights.package import load_model

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    target = Path(out) if out else folder / f"student{SUFFIXES[to]}"
    if target.suffix in (".safetensors", ".json"):
        raise ConfigError(
            f"--out: {target} would replace a network's own files; let it end in {SUFFIXES[to]}"
        )
    if not target.is_dir():
        remove_old(target)
    if int8 and to != "onnx":
        raise ConfigError(f"--int8: quantised files are ONNX; leave --to {to} out")
    splits = _splits(path, data, root, overrides) if int8 else None
    loaded = load_model(path) if splits is None else open_network(path, splits[1].classes)
    options = ExportOptions(
        preprocessing=not no_preprocessing, labels=not scores, dynamic=not static, size=size
    )
    report = export_model(loaded, target, to, options, opset=opset)
    megabytes = report.path.stat().st_size / 1e6
    print(f"{report.path} ({megabytes:.1f} MB){f', opset {report.opset}' if report.opset else ''}")
    shapes = ", ".join(f"{n} x 3 x {h} x {w}" for n, h, w in report.checked)
    what = "pixels of another class" if options.labels else "difference of scores"
    print(
        f"{loaded.model.name}, checked on {shapes}: {what}, "
        f"mean {report.mean_difference:.2g}, largest {report.largest_difference:.2g}"
    )
    if splits is not None:
        _quantised(loaded, target, options, splits, calibration, limit)


def _splits(path: str, data: str | None, root: str | None, overrides: Words) -> tuple[Any, Any]:
    """Training and validation split, before anything is written."""
    from cirkd_ray.data import build_dataset
    from cirkd_ray.train.trained_on import data_settings

    settings = data_settings(path, data, root, overrides)
    name, root = settings.pop("name"), settings.pop("root", None)
    validation = settings.pop("val_split", None) or "val"
    train, val = (build_dataset(name, split=split, root=root, **settings) for split in ("train", validation))
    return train, val


def _quantised(
    loaded: LoadedModel,
    source: Path,
    options: ExportOptions,
    splits: tuple[Any, Any],
    calibration: int,
    limit: int | None,
) -> None:
    """Write the quantised file and print it beside the other."""
    from cirkd_ray.evaluate.onnx import Exported, beside, calibration_images
    from cirkd_ray.report.progress import bar
    from cirkd_ray.weights.quantize import quantize

    train, val = splits
    preprocessing = None if options.preprocessing else loaded.preprocessing
    target = source.with_suffix(".int8.onnx")
    first = Exported(source, preprocessing)
    count = quantize(source, target, calibration_images(first, train, calibration), loaded.model.name)
    with bar(len(val) if limit is None else min(limit, len(val)), "comparing") as advance:
        found = beside(first, Exported(target, preprocessing), val, limit, advance)
    sizes = [path.stat().st_size / 1e6 for path in (source, target)]
    print(
        f"{target} ({sizes[1]:.1f} MB of {sizes[0]:.1f}), {count} tensors quantised by the ranges of "
        f"{min(calibration, len(train))} training images"
    )
    print(
        f"mIoU on {found.images} images: {100 * found.miou[0]:.2f} % float, {100 * found.miou[1]:.2f} % int8 "
        f"({100 * (found.miou[1] - found.miou[0]):+.2f}); time {found.ratio:.2f} of the float file's here"
    )
