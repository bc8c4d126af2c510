"""Write a trained network as a file that runs without this package, and check the file against PyTorch.

The graph takes RGB images of 0..255 (N x 3 x H x W, float32) and returns the class of every pixel;
--no-preprocessing and --scores leave out what stands before and after the network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "export a trained network to ONNX, TorchScript or torch.export"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("path", metavar="PATH", help="a run's folder, its model.json or student.safetensors")
    parser.add_argument("--to", choices=("onnx", "torchscript", "torch-export"), default="onnx")
    parser.add_argument("--out", metavar="FILE", help="default: beside the weights, named student")
    parser.add_argument(
        "--no-preprocessing", action="store_true", help="take images that are prepared already"
    )
    parser.add_argument(
        "--scores", action="store_true", help="return class scores (N x K x H x W), not labels"
    )
    parser.add_argument("--static", action="store_true", help="fix the batch to 1 and the size to --size")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="ONNX operator set")


def run(args: argparse.Namespace) -> int:
    """Export, check, print."""
    from cirkd_ray.commands._common import require_size
    from cirkd_ray.weights.export import SUFFIXES, ExportOptions, export_model
    from cirkd_ray.weights.package import load_model

    require_size(args.size)
    loaded = load_model(args.path)
    folder = Path(args.path) if Path(args.path).is_dir() else Path(args.path).parent
    target = Path(args.out) if args.out else folder / f"student{SUFFIXES[args.to]}"
    options = ExportOptions(
        preprocessing=not args.no_preprocessing,
        labels=not args.scores,
        dynamic=not args.static,
        size=(args.size[0], args.size[1]),
    )
    report = export_model(loaded, target, args.to, options, opset=args.opset)
    size = report.path.stat().st_size / 1e6
    print(f"{report.path} ({size:.1f} MB){f', opset {report.opset}' if report.opset else ''}")
    shapes = ", ".join(f"{n} x 3 x {h} x {w}" for n, h, w in report.checked)
    what = "pixels of another class" if options.labels else "difference of scores"
    print(
        f"{loaded.model.name}, checked on {shapes}: {what}, "
        f"mean {report.mean_difference:.2g}, largest {report.largest_difference:.2g}"
    )
    return 0
