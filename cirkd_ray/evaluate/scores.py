"""Class scores of every pixel, made for a few classes at a time, and the labels and pictures of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cirkd_ray.device import available_bytes
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.inference import ONE_VIEW, SlidingWindow, Views, resize, scaled_size, window_corners
from cirkd_ray.types import SegmentationOutput

AT_ONCE = 2**28
"""Bytes of class scores at the images' size that are made at a time."""
_BLOCK, _REST = 8, 4
"""Parts begin at a multiple of the first, and the last one has at least as many classes as the second: so
PyTorch's kernels round in a part as they do in the whole.
"""


class PixelScores:
    """Class scores of every pixel of some images, averaged over all views, made for some classes at a time.

    Kept are the views' logits at feature resolution. The logits of each view are upsampled bilinearly to the
    images' size, with the network's own `align_corners` (true where it does not say), and then averaged. The
    caller puts the network into evaluation mode and switches gradients off (see `inference`).

    Args:
        model: a network that returns a `SegmentationOutput`.
        preprocessing: how it wants its pixels: a `Preprocess`, or a `Preprocessing` for once.
        images: N x 3 x H x W, RGB, uint8 (or float in 0..255), on the network's device.
        views: scales, flip and windows.
        size: height and width of the scores where they are not the images' own.
        name: what messages call the images.

    Raises:
        ConfigError: there is not enough memory; with the bytes and what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Callable[[Tensor], Tensor],
        images: Tensor,
        views: Views = ONE_VIEW,
        size: tuple[int, int] | None = None,
        name: str = "images",
    ) -> None:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be N x 3 x H x W, got {tuple(images.shape)}")
        self.name, self.seen_as, self.size = name, views, size or (images.shape[2], images.shape[3])
        self.averages_probabilities = views.average == "probabilities"
        self.align_corners = bool(getattr(model, "align_corners", True))
        self.views: list[_View] = []
        with enough_memory(name, (images.shape[2], images.shape[3]), views):
            pixels = preprocessing(images)
            for scale in views.scales:
                view = resize(pixels, scaled_size(images.shape[-2:], scale), align_corners=True)
                for mirrored in (False, True) if views.flip else (False,):
                    seen = view.flip(-1) if mirrored else view
                    self.views.append(_View(model, seen, views.window, self.align_corners, mirrored))
        self.images, self.classes = self.views[0].parts[0].shape[:2]

    def of(self, first: int, end: int) -> Tensor:
        """N x (end - first) x H x W float32 logits, or probabilities, of classes first to end - 1."""
        total: Tensor | None = None
        for view in self.views:
            scores = self._resized(view, first, end)
            if self.averages_probabilities:
                scores = self._softmax(view, scores, first, end)
            total = scores if total is None else total + scores
        assert total is not None
        return total if len(self.views) == 1 else total / len(self.views)

    def labels(self) -> Tensor:
        """N x H x W integers: the class of the highest score of each pixel, the first of equals.

        Scores of as many classes as `AT_ONCE` holds are made at a time: memory does not grow with the number
        of classes.
        """
        with enough_memory(self.name, self.size, self.seen_as):
            highest = _Highest(self.classes)
            for first, end in self._parts():
                highest.add(self.of(first, end), first)
            return highest.labels

    def _parts(self) -> Iterator[tuple[int, int]]:
        """First class of each part and the one after its last."""
        fitting = AT_ONCE // (4 * self.images * self.size[0] * self.size[1])
        step = max(_BLOCK, fitting - fitting % _BLOCK)
        starts = [0, *range(step, self.classes - _REST + 1, step)]
        yield from zip(starts, [*starts[1:], self.classes], strict=True)

    def _resized(self, view: _View, first: int, end: int) -> Tensor:
        logits = view.logits(first, end)
        return resize(logits.flip(-1) if view.mirrored else logits, self.size, self.align_corners)

    def _softmax(self, view: _View, scores: Tensor, first: int, end: int) -> Tensor:
        """Probabilities; for some of the classes by the logarithm of the sum over all, formed once a view."""
        if end - first == self.classes:
            return scores.softmax(1)
        if view.normaliser is None:
            for part in self._parts():
                found = self._resized(view, *part).logsumexp(1, keepdim=True)
                view.normaliser = found if view.normaliser is None else view.normaliser.logaddexp(found)
        assert view.normaliser is not None
        return (scores - view.normaliser).exp()


class _View:
    """The logits of one view at feature resolution: of the whole view, or of each window on it."""

    def __init__(
        self,
        model: nn.Module,
        pixels: Tensor,
        window: SlidingWindow | None,
        align_corners: bool,
        mirrored: bool,
    ) -> None:
        self.size, self.align_corners, self.mirrored = pixels.shape[2:], align_corners, mirrored
        self.normaliser: Tensor | None = None
        if window is None:
            self.corners, self.parts = None, [_forward(model, pixels)]
            return
        self.window = min(window.size[0], self.size[0]), min(window.size[1], self.size[1])
        height, width = self.window
        self.corners = [
            (top, left)
            for top in window_corners(self.size[0], height, window.step[0])
            for left in window_corners(self.size[1], width, window.step[1])
        ]
        self.parts = []
        self.count = torch.zeros(self.size, device=pixels.device)
        for start in range(0, len(self.corners), window.batch):
            group = self.corners[start : start + window.batch]
            crops = torch.cat([pixels[:, :, top : top + height, left : left + width] for top, left in group])
            self.parts += _forward(model, crops).chunk(len(group))
            require_free(self.parts[0].nbytes * (len(self.corners) - len(self.parts)), pixels.device)
            for top, left in group:
                self.count[top : top + height, left : left + width] += 1

    def logits(self, first: int, end: int) -> Tensor:
        """Of some classes: N x (end - first) x h x w, at the view's own resolution where it has windows."""
        if self.corners is None:
            return _of_classes(self.parts[0], first, end)
        height, width = self.window
        total = self.parts[0].new_zeros(self.parts[0].shape[0], end - first, *self.size)
        for part, (top, left) in zip(self.parts, self.corners, strict=True):
            resized = resize(_of_classes(part, first, end), self.window, self.align_corners)
            total[:, :, top : top + height, left : left + width] += resized
        return total / self.count


class _Highest:
    """The class of the highest score of each pixel so far, the first of equals."""

    def __init__(self, classes: int) -> None:
        self.type = torch.uint8 if classes <= 256 else torch.int16
        self.labels, self.best = torch.empty(0), torch.empty(0)

    def add(self, scores: Tensor, first: int) -> None:
        """Look at N x k x H x W scores of the classes from `first` on."""
        if first == 0:
            self.best = torch.full_like(scores[:, 0], -math.inf)
            self.labels = torch.zeros_like(self.best, dtype=self.type)
        # On the CPU `argmax` over a dimension that is not the last costs several percent of a small network's
        # forward pass; a pass per class over whole maps is about three times as fast.
        for index in range(scores.shape[1]):
            self.labels.masked_fill_(scores[:, index] > self.best, first + index)
            torch.maximum(self.best, scores[:, index], out=self.best)


def predict_logits(
    model: nn.Module,
    preprocessing: Callable[[Tensor], Tensor],
    images: Tensor,
    views: Views = ONE_VIEW,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """All of `PixelScores` at once: N x K x H x W float32 (K classes), logits or probabilities.

    For labels alone take `PixelScores(...).labels()`, whose memory does not grow with K.

    Raises:
        ConfigError: there is not enough memory.
    """
    scores = PixelScores(model, preprocessing, images, views, size)
    with enough_memory("images", scores.size, views):
        require_free(4 * scores.images * scores.classes * scores.size[0] * scores.size[1], images.device)
        return scores.of(0, scores.classes)


def label_map(
    model: nn.Module,
    preprocessing: Callable[[Tensor], Tensor],
    image: NDArray[np.uint8],
    device: torch.device,
    views: Views = ONE_VIEW,
    size: tuple[int, int] | None = None,
    name: str = "image",
) -> NDArray[np.uint8]:
    """Predicted class of every pixel of one image: H x W x 3 uint8 RGB -> H x W uint8, or of `size`."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None]
    found = PixelScores(model, preprocessing, pixels, views, size, name).labels()
    labels: NDArray[np.uint8] = found[0].to(torch.uint8).cpu().numpy()
    return labels


def predicted_classes(scores: Tensor) -> Tensor:
    """Class of the highest score, the first of equals: N x K x H x W scores -> N x H x W integers."""
    highest = _Highest(scores.shape[1])
    highest.add(scores, 0)
    return highest.labels


def require_free(needed: int, device: torch.device) -> None:
    """Raise a `MemoryError` where the device has fewer bytes: a system may end a process that takes them."""
    free = available_bytes(device)
    if free is not None and needed > free:
        raise MemoryError(f"{needed} bytes")


@contextmanager
def enough_memory(name: str, size: tuple[int, int], views: Views) -> Iterator[None]:
    """Turn a lack of memory into an error that names the images and the way out.

    Args:
        name: of the images.
        size: their height and width.
        views: how they are seen.

    Raises:
        ConfigError: memory was short in the block.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        asked = re.search(r"([\d.]+ (?:bytes|[KMG]iB))", str(error))
        way = "take a smaller --window" if views.window else "see them in parts with --window 512x512"
        raise ConfigError(
            f"{name}: {size[0]} x {size[1]} pixels do not fit in memory ({asked[1] if asked else 'no'} more "
            f"asked for);\n{way} (of a run: train.validate_window, from its start and under another --name, "
            "because figures of windows and of whole images are not compared)"
        ) from None


def _of_classes(logits: Tensor, first: int, end: int) -> Tensor:
    """Some classes' logits, in the memory format of all: kernels may round otherwise in another."""
    if end - first == logits.shape[1]:
        return logits
    last = logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous()
    return logits[:, first:end].contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def _forward(model: nn.Module, pixels: Tensor) -> Tensor:
    output: SegmentationOutput = model(pixels)
    return output.logits.float()
