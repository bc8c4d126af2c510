"""Evaluation: what upsampling, choosing classes, confusion matrix and boundaries cost beside the network.

Each part is timed alone; the best of several repetitions counts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cirkd_ray.models.segmentation import SegmentationModel
    from cirkd_ray.report.tables import TextTable


def run(
    name: str = "deeplabv3_resnet18",
    *,
    classes: int = 19,
    size: tuple[int, int] = (512, 1024),
    device: str = "auto",
    repeat: int = 5,
) -> TextTable:
    """Time each part of an evaluation.

    Args:
        name: the network.
        classes: number of classes.
        size: height and width of the image.
        device: "auto", "cpu" or "cuda".
        repeat: repetitions.

    Returns:
        A table of milliseconds, and of percents of the forward pass.
    """
    import torch

    from cirkd_ray.device import local_device
    from cirkd_ray.models import build_model
    from cirkd_ray.report.tables import TextTable

    place = local_device(device)
    model = build_model(name, num_classes=classes).to(place).eval()
    with torch.inference_mode():
        work = parts(model, classes, size, place)
        seconds = {title: timed(part, place, repeat) for title, part in work.items()}
    whole = seconds["forward pass"]
    rows = tuple(
        (title, f"{value * 1e3:.3f}", f"{value / whole * 100:.2f}") for title, value in seconds.items()
    )
    text = f"{name}, {classes} classes, {size[0]}x{size[1]}, {place}, {torch.get_num_threads()} threads"
    return TextTable(("part", "ms", "% of forward"), rows, text)


def parts(
    model: SegmentationModel, classes: int, size: tuple[int, int], device: torch.device
) -> dict[str, Callable[[], object]]:
    """The work of each part on a random image, by name."""
    import torch
    from torch.nn import functional as F

    from cirkd_ray.evaluate.boundary import BoundaryMatrix
    from cirkd_ray.evaluate.inference import channel_last
    from cirkd_ray.evaluate.metrics import ConfusionMatrix
    from cirkd_ray.evaluate.scores import predicted_classes

    plain = copy.deepcopy(model)
    channel_last(model)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, device=device)
    pixels = model.preprocessing(image)
    small = model(pixels).logits
    logits = F.interpolate(small, size, mode="bilinear", align_corners=model.align_corners)
    prediction = predicted_classes(logits)
    labels = prediction.long().roll(5, 2)
    confusion = ConfusionMatrix(classes, device=device)
    boundary = BoundaryMatrix(classes, device=device)
    return {
        "forward pass": lambda: model(pixels),
        "the same, channels first": lambda: plain(pixels),
        "upsampling": lambda: F.interpolate(small, size, mode="bilinear", align_corners=True),
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
