"""What a network costs: parameters, multiply-adds, and images a second on this device."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cirkd_ray.models.build import build_model
from cirkd_ray.models.segmentation import SegmentationModel

CROPS = {"segformer": (1024, 1024)}
DEFAULT_CROP = (512, 1024)
"""Cityscapes' training crops."""


@dataclass(frozen=True)
class Cost:
    """One network.

    Attributes:
        name: as `build_model` knows it.
        parameters: of what is used at inference, and with the auxiliary head.
        multiply_adds: of one image at `size`, without the auxiliary head.
        size: height and width of the image.
        feature: channels of the feature map.
        strides: of the feature map, then of every encoder stage.
    """

    name: str
    parameters: int
    training_parameters: int
    multiply_adds: int
    size: tuple[int, int]
    feature: int
    strides: tuple[int, ...]


def crop_of(name: str) -> tuple[int, int]:
    """The crop that the published recipes train that network with on Cityscapes."""
    return CROPS.get(name.replace(":", "_").partition("_")[0], DEFAULT_CROP)


def cost(name: str, size: tuple[int, int] | None = None, num_classes: int = 19, **settings: Any) -> Cost:
    """Count on the meta device: no memory, no time but that of building."""
    size = size or crop_of(name)
    with torch.device("meta"):
        full = build_model(name, num_classes=num_classes, **settings)
        training_parameters = sum(p.numel() for p in full.parameters())
        if hasattr(full, "auxiliary"):
            full.auxiliary = None
        multiply_adds = count_multiply_adds(full, size)
    stages = [full.strides[key] for key in full.channels if key != "feature"]
    return Cost(
        name=name,
        parameters=sum(p.numel() for p in full.parameters()),
        training_parameters=training_parameters,
        multiply_adds=multiply_adds,
        size=size,
        feature=full.channels["feature"],
        strides=(full.strides["feature"], *stages),
    )


def count_multiply_adds(model: SegmentationModel, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions, matrix products and attention for one image of `size`."""
    training = model.training
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, *size, device=device))
    model.train(training)
    return int(counter.get_total_flops()) // 2


def images_per_second(
    model: SegmentationModel,
    size: tuple[int, int],
    device: torch.device,
    *,
    batch: int = 1,
    seconds: float = 2.0,
) -> float:
    """Forwards in eval mode: the median of single timings after a warm-up of three passes or a second."""
    model = model.to(device).eval()
    images = torch.randn(batch, 3, *size, device=device)
    times: list[float] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        warm = time.perf_counter() + 1.0
        for _ in range(3):
            model(images)
            _wait(device)
            if time.perf_counter() > warm:
                break
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            model(images)
            _wait(device)
            times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
