"""Exported ONNX files on a data set: their mIoU, and how fast one is beside another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cirkd_ray.data.base import Sample, SegmentationDataset, spread
from cirkd_ray.evaluate.metrics import ConfusionMatrix
from cirkd_ray.types import IGNORE_INDEX, IGNORE_LABEL, Preprocessing

ROUNDS = 20
"""Runs of each file when two are timed in turns."""


class Exported:
    """An ONNX file of `export_model` on the CPU.

    Args:
        path: the file.
        preprocessing: what the graph expects to be done to an image; None where it does that itself.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing | None) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.input, self.preprocessing = self.session.get_inputs()[0], preprocessing

    def prepared(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """1 x 3 x H x W from an H x W x 3 image, at the size that the graph takes."""
        height, width = self.input.shape[2:]
        if isinstance(height, int):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).unsqueeze(0)
        found = pixels.float() if self.preprocessing is None else self.preprocessing(pixels)
        whole: NDArray[np.float32] = found.contiguous().numpy()
        return whole

    def run(self, prepared: NDArray[np.float32]) -> NDArray[Any]:
        """What the graph returns: 1 x H x W labels or 1 x K x H x W scores."""
        found: NDArray[Any] = self.session.run(None, {self.input.name: prepared})[0]
        return found

    def labels(self, sample: Sample) -> NDArray[np.int64]:
        """The class of every pixel of a sample's image."""
        found = self.run(self.prepared(sample.image))[0]
        classes = found if found.ndim == 2 else found.argmax(0)
        if classes.shape == sample.size:
            same: NDArray[np.int64] = classes.astype(np.int64)
            return same
        height, width = sample.size
        resized: NDArray[np.uint8] = cv2.resize(
            classes.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
        )
        return resized.astype(np.int64)


class Beside(NamedTuple):
    """A quantised file beside the one that it was made of.

    Attributes:
        miou: of both, on the same images.
        images: how many those were.
        ratio: time of the quantised file's run to the other's, median of runs in turns.
    """

    miou: tuple[float, float]
    images: int
    ratio: float


def calibration_images(
    exported: Exported, data: SegmentationDataset, count: int
) -> Iterator[NDArray[np.float32]]:
    """Up to `count` images of a split, from the first to the last, as the graph takes them."""
    for index in spread(len(data), count):
        yield exported.prepared(data.load(index).image)


def beside(
    first: Exported,
    second: Exported,
    data: SegmentationDataset,
    limit: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Beside:
    """Compare two files on (the first `limit` images of) a labelled split."""
    count = len(data) if limit is None else min(limit, len(data))
    matrices = [ConfusionMatrix(len(data.classes)) for _ in range(2)]
    for index in range(count):
        sample = data.load(index)
        truth = torch.from_numpy(sample.label.astype(np.int64))
        truth = truth.masked_fill(truth == IGNORE_LABEL, IGNORE_INDEX)
        for exported, matrix in zip((first, second), matrices, strict=True):
            matrix.update(torch.from_numpy(exported.labels(sample)).unsqueeze(0), truth.unsqueeze(0))
        on_images(1)
    image = first.prepared(data.load(0).image)
    return Beside((matrices[0].miou(), matrices[1].miou()), count, _ratio((first, second), image))


def _ratio(files: Sequence[Exported], image: NDArray[np.float32]) -> float:
    """Median over rounds of the second's time by the first's, run in turns."""
    ratios = []
    for round_ in range(ROUNDS + 2):
        seconds = []
        for exported in files:
            start = time.perf_counter()
            exported.run(image)
            seconds.append(time.perf_counter() - start)
        if round_ >= 2:  # the first ones warm up
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)
