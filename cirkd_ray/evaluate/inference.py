"""From images to class scores, and from scores to classes: scales, mirror images, sliding windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cirkd_ray.device import DTYPES, autocast
from cirkd_ray.errors import ConfigError
from cirkd_ray.types import SegmentationOutput

Average = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class SlidingWindow:
    """A window in pixels of the (scaled) image, through which the network sees it part by part.

    Attributes:
        size: (height, width); an image smaller than that is taken whole in that direction.
        stride: (vertical, horizontal) distance of neighbouring windows; by default two thirds of the size.
            The last row and column are moved inwards, so that every window is full and nothing is padded.
        batch: how many windows are run at once.
    """

    size: tuple[int, int]
    stride: tuple[int, int] | None = None
    batch: int = 4

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.step) < 1 or self.batch < 1:
            raise ConfigError(f"window: size, stride and batch must be positive, got {self}")
        if self.step[0] > self.size[0] or self.step[1] > self.size[1]:
            raise ConfigError(f"window: a stride of {self.step} leaves gaps between windows of {self.size}")

    @property
    def step(self) -> tuple[int, int]:
        """The stride in use."""
        return self.stride or (max(1, self.size[0] * 2 // 3), max(1, self.size[1] * 2 // 3))


@dataclass(frozen=True)
class Views:
    """How the network sees an image: each view is the image at one scale, as it is or mirrored.

    Attributes:
        scales: factors of height and width.
        flip: also take the mirror image at each scale.
        window: see each view through windows instead of whole.
        average: "logits" averages raw scores, as the reference does; "probabilities" averages softmax.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: SlidingWindow | None = None
    average: Average = "logits"

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"scales: at least one positive factor is needed, got {list(self.scales)}")
        if self.average not in ("logits", "probabilities"):
            raise ConfigError(f"average: must be 'logits' or 'probabilities', got {self.average!r}")


ONE_VIEW = Views()
"""The whole image once."""


def predict_logits(
    model: nn.Module,
    preprocessing: Callable[[Tensor], Tensor],
    images: Tensor,
    views: Views = ONE_VIEW,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Class scores of every pixel, averaged over all views of the images.

    The logits of each view are upsampled bilinearly to the image's size, with the network's own
    `align_corners` (true where it does not say), and then averaged. The caller puts the network into
    evaluation mode and switches gradients off (see `inference`).

    Args:
        model: a network that returns a `SegmentationOutput`.
        preprocessing: how it wants its pixels: a `Preprocess`, or a `Preprocessing` for once.
        images: N x 3 x H x W, RGB, uint8 (or float in 0..255), on the network's device.
        views: scales, flip and windows.
        size: height and width of the result where they are not the image's own.

    Returns:
        N x K x H x W float32 (K classes): logits, or probabilities.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be N x 3 x H x W, got {tuple(images.shape)}")
    size = size or (images.shape[2], images.shape[3])
    align_corners = bool(getattr(model, "align_corners", True))
    pixels = preprocessing(images)
    total: Tensor | None = None
    for scale in views.scales:
        view = _resize(pixels, scaled_size(images.shape[-2:], scale), align_corners=True)
        for mirrored in (False, True) if views.flip else (False,):
            logits = _view_logits(model, view.flip(-1) if mirrored else view, views.window, align_corners)
            scores = _resize(logits.flip(-1) if mirrored else logits, size, align_corners)
            scores = scores.softmax(1) if views.average == "probabilities" else scores
            total = scores if total is None else total.add_(scores)
    assert total is not None
    count = len(views.scales) * (2 if views.flip else 1)
    return total if count == 1 else total.div_(count)


def label_map(
    model: nn.Module,
    preprocessing: Callable[[Tensor], Tensor],
    image: NDArray[np.uint8],
    device: torch.device,
    views: Views = ONE_VIEW,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Predicted class of every pixel of one image: H x W x 3 uint8 RGB -> H x W uint8, or of `size`."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    scores = predict_logits(model, preprocessing, pixels, views, size)
    labels: NDArray[np.uint8] = predicted_classes(scores)[0].to(torch.uint8).cpu().numpy()
    return labels


def predicted_classes(scores: Tensor) -> Tensor:
    """Class of the highest score, the first of equals: N x K x H x W scores -> N x H x W integers.

    On the CPU `argmax` over a dimension that is not the last costs several percent of a small network's
    forward pass; a pass per class over whole maps is about three times as fast.
    """
    classes = scores.shape[1]
    if scores.device.type != "cpu" or classes > 256:
        return scores.argmax(1)
    best, result = scores[:, 0].clone(), torch.zeros_like(scores[:, 0], dtype=torch.uint8)
    for index in range(1, classes):
        result.masked_fill_(scores[:, index] > best, index)
        torch.maximum(best, scores[:, index], out=best)
    return result


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width of an image of `size` seen at `scale`: rounded, at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@contextmanager
def inference(
    *models: nn.Module | None, device: torch.device, precision: str | None = None
) -> Iterator[None]:
    """Evaluation mode, no gradients and, where asked, autocast; every module's mode is put back at the end.

    Args:
        models: the networks; None is passed over.
        device: where they run.
        precision: None or "fp32" for the weights' own precision; "bf16" or "fp16" for autocast.
    """
    precision = precision or "fp32"
    if precision not in DTYPES:
        raise ConfigError(f"precision: must be one of {', '.join(DTYPES)}; got {precision!r}")
    networks = [model for model in models if model is not None]
    modes = [(module, module.training) for model in networks for module in model.modules()]
    try:
        for model in networks:
            model.eval()
        with torch.inference_mode(), autocast(precision, device):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def window_corners(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows that cover 0..length-1; the last one ends at the edge."""
    if length <= size:
        return [0]
    return [*range(0, length - size, stride), length - size]


def _view_logits(model: nn.Module, view: Tensor, window: SlidingWindow | None, align_corners: bool) -> Tensor:
    """Logits of one view: at feature resolution, or through windows at the view's own resolution."""
    if window is None:
        return _forward(model, view)
    height, width = min(window.size[0], view.shape[2]), min(window.size[1], view.shape[3])
    corners = [
        (top, left)
        for top in window_corners(view.shape[2], height, window.step[0])
        for left in window_corners(view.shape[3], width, window.step[1])
    ]
    total: Tensor | None = None
    count = torch.zeros(view.shape[2:], device=view.device)
    for start in range(0, len(corners), window.batch):
        group = corners[start : start + window.batch]
        crops = torch.cat([view[:, :, top : top + height, left : left + width] for top, left in group])
        logits = _resize(_forward(model, crops), (height, width), align_corners)
        if total is None:
            total = logits.new_zeros(view.shape[0], logits.shape[1], *view.shape[2:])
        for part, (top, left) in zip(logits.chunk(len(group)), group, strict=True):
            total[:, :, top : top + height, left : left + width] += part
            count[top : top + height, left : left + width] += 1
    assert total is not None
    return total / count


def _forward(model: nn.Module, pixels: Tensor) -> Tensor:
    output: SegmentationOutput = model(pixels)
    return output.logits.float()


def _resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
