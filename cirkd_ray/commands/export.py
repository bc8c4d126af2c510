"""`cirkd export`."""

from __future__ import annotations

from typing import Literal

import click
from click import argument, option

from cirkd_ray.commands._options import anywhere, choice, out_option, size_option


@click.command()
@argument("path", metavar="PATH", help="A run's folder, its model.json or student.safetensors.")
@choice("--to", "onnx", "torchscript", "torch-export", help="Format of the file.")
@out_option(metavar="FILE", callback=anywhere, help="Default: beside the weights, named student.")
@option("--no-preprocessing", is_flag=True, help="Take images that are prepared already.")
@option("--scores", is_flag=True, help="Return class scores (N x K x H x W), not labels.")
@option("--static", is_flag=True, help="Fix the batch to 1 and the size to --size.")
@size_option("Of the image that is traced.", default=(256, 512))
@option("--opset", type=int, default=20, metavar="N", help="ONNX operator set.")
def command(
    path: str,
    to: Literal["onnx", "torchscript", "torch-export"],
    out: str | None,
    no_preprocessing: bool,
    scores: bool,
    static: bool,
    size: tuple[int, int],
    opset: int,
) -> None:
    """Write a trained network as a file that runs without this package, and check the file against PyTorch.

    The graph takes RGB images of 0..255 (N x 3 x H x W, float32) and returns the class of every pixel;
    --no-preprocessing and --scores leave out what stands before and after the network.
    """
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.files import remove_old
    from cirkd_ray.remote.copies import address, copy_of, url_of
    from cirkd_ray.remote.mirror import send
    from cirkd_ray.weights.card import on_this_machine
    from cirkd_ray.weights.export import SUFFIXES, ExportOptions, export_model
    from cirkd_ray.weights.package import load_model

    place = on_this_machine(path)
    folder = place if place.is_dir() else place.parent
    target = copy_of(out) if out else folder / f"student{SUFFIXES[to]}"
    if target.suffix in (".safetensors", ".json"):
        raise ConfigError(
            f"--out: {address(target)} would replace a network's own files; let it end in {SUFFIXES[to]}"
        )
    if not target.is_dir():
        remove_old(target)
    loaded = load_model(place)
    options = ExportOptions(
        preprocessing=not no_preprocessing, labels=not scores, dynamic=not static, size=size
    )
    target.parent.mkdir(parents=True, exist_ok=True) if url_of(target) else None
    report = export_model(loaded, target, to, options, opset=opset)
    send(report.path)
    megabytes = report.path.stat().st_size / 1e6
    print(f"{address(report.path)} ({megabytes:.1f} MB){f', opset {report.opset}' if report.opset else ''}")
    shapes = ", ".join(f"{n} x 3 x {h} x {w}" for n, h, w in report.checked)
    what = "pixels of another class" if options.labels else "difference of scores"
    print(
        f"{loaded.model.name}, checked on {shapes}: {what}, "
        f"mean {report.mean_difference:.2g}, largest {report.largest_difference:.2g}"
    )
