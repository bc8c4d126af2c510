"""Evaluation: what upsampling, choosing classes, confusion matrix and boundaries cost beside the network.

Each part is timed alone; the best of several repetitions counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cirkd_ray.models.segmentation import SegmentationModel

HELP = "evaluation: cost of the metrics beside the forward pass"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("--model", default="deeplabv3_resnet18", help="network (default: deeplabv3_resnet18)")
    parser.add_argument(
        "--classes", type=int, default=19, metavar="K", help="number of classes (default: 19)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"), help="of the image"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table."""
    import torch

    from cirkd_ray.device import local_device
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.models import build_model
    from cirkd_ray.report.console import output
    from cirkd_ray.report.tables import TextTable

    if args.repeat < 1 or args.classes < 1 or min(args.size) < 8:
        raise ConfigError("--repeat and --classes must be at least 1, --size at least 8 8")
    device = local_device(args.device)
    model = build_model(args.model, num_classes=args.classes).to(device).eval()
    with torch.inference_mode():
        seconds = {
            name: timed(part, device, args.repeat) for name, part in parts(model, args, device).items()
        }
    whole = seconds["forward pass"]
    rows = tuple(
        (name, f"{value * 1e3:.3f}", f"{value / whole * 100:.2f}") for name, value in seconds.items()
    )
    size = "x".join(map(str, args.size))
    title = f"{args.model}, {args.classes} classes, {size}, {device}, {torch.get_num_threads()} threads"
    output().print(TextTable(("part", "ms", "% of forward"), rows, title).rich())
    return 0


def parts(
    model: SegmentationModel, args: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], object]]:
    """The work of each part on a random image, by name."""
    import torch
    from torch.nn import functional as F

    from cirkd_ray.evaluate.boundary import BoundaryMatrix
    from cirkd_ray.evaluate.inference import predicted_classes
    from cirkd_ray.evaluate.metrics import ConfusionMatrix

    height, width = args.size
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, device=device)
    pixels = model.preprocessing(image)
    small = model(pixels).logits
    logits = F.interpolate(small, (height, width), mode="bilinear", align_corners=model.align_corners)
    prediction = predicted_classes(logits)
    labels = prediction.long().roll(5, 2)
    confusion, boundary = (
        ConfusionMatrix(args.classes, device=device),
        BoundaryMatrix(args.classes, device=device),
    )
    return {
        "forward pass": lambda: model(pixels),
        "upsampling": lambda: F.interpolate(small, (height, width), mode="bilinear", align_corners=True),
        "choice of the class": lambda: predicted_classes(logits),
        "confusion matrix": lambda: confusion.update(prediction, labels),
        "boundaries (on request)": lambda: boundary.update(prediction, labels),
    }


def timed(part: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Seconds of the fastest of `repeat` calls, after one to warm up."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        part()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeat))
