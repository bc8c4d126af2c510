"""A contact sheet: images with their labels laid over them, and the classes that occur."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.sampler import sample_rng
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.data_tools.pictures import Color, blend, fit, grid, legend, outlined, stack, text_line
from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.types import ClassSet

_MARGIN = 8
_RED = (205, 30, 45)


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be read: its name and why."""

    name: str
    reason: str


def pick_samples(
    data: SegmentationDataset, count: int, start: int | None = None, augmented: bool = False
) -> list[Sample | Bad]:
    """Samples to look at, those that cannot be read included.

    Args:
        data: the data set.
        count: how many, at most.
        start: the first of them; None spreads them evenly.
        augmented: training crops instead of whole images.
    """
    count = min(count, len(data))
    spread = np.linspace(0, len(data) - 1, count).astype(int).tolist()
    samples: list[Sample | Bad] = []
    for n in spread if start is None else range(start, min(start + count, len(data))):
        try:
            sample = data.load(n)
        except TransientError:
            raise
        except DataError as error:
            samples.append(Bad(data.name(n), str(error)))
            continue
        if augmented:
            image, label = TrainTransform(crop=data.default_crop)(sample, sample_rng(0, n))
            sample = Sample(image, label, sample.name)
        samples.append(sample)
    return samples


def contact_sheet(
    samples: Sequence[Sample | Bad], classes: ClassSet, columns: int = 3, width: int = 360
) -> UInt8:
    """H x W x 3 uint8, RGB: each sample as image beside overlay, its name below, and a legend at the bottom.

    A sample that cannot be read is a red tile with the reason. Ignored pixels stay as they are; edges of
    labels are drawn, so that a shift of a few pixels is seen.

    Args:
        samples: what to show.
        classes: names and colours.
        columns: samples side by side.
        width: pixels that each picture may be wide; it may be 3/4 of that high.
    """
    cells = [
        _bad_cell(sample, width) if isinstance(sample, Bad) else _cell(sample, classes, width)
        for sample in samples
    ]
    sheet = grid([cells[i : i + columns] for i in range(0, len(cells), columns)], gap=_MARGIN)
    below = legend(
        _entries([s for s in samples if isinstance(s, Sample)], classes), sheet.shape[1] - 2 * _MARGIN
    )
    return np.vstack([sheet, np.pad(below, ((0, 0), (_MARGIN, _MARGIN), (0, 0)), constant_values=255)])


def overlay(image: UInt8, label: UInt8, classes: ClassSet, opacity: float = 0.55) -> UInt8:
    """The image with the classes' colours over it; ignored pixels stay, edges of labels are white."""
    return outlined(blend(image, label, classes, opacity), label)


def _cell(sample: Sample, classes: ClassSet, width: int) -> UInt8:
    image = fit(sample.image, 3 * width // 4, width, enlarge=True)
    label = fit(sample.label, 3 * width // 4, width, labels=True, enlarge=True)
    pair = np.hstack([image, overlay(image, label, classes)])
    return stack([pair, text_line(sample.name[-80:], 2 * width)], gap=0)


def _bad_cell(sample: Bad, width: int) -> UInt8:
    tile = np.full((3 * width // 4, 2 * width, 3), _RED, np.uint8)
    words = textwrap.wrap(f"bad: {sample.reason}", max(8, width // 4), max_lines=max(1, width // 40))
    lines = [text_line(text, 2 * width) for text in words]
    return stack([tile, *lines, text_line(sample.name[-80:], 2 * width)], gap=0)


def _entries(samples: Sequence[Sample], classes: ClassSet) -> list[tuple[str, Color]]:
    """Name with share, and colour, of every class that occurs; the last is of ignored pixels."""
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.label.ravel(), minlength=256)
    shares = 100 * counts / max(1, counts.sum())
    known = [(n, c, s) for n, c, s in zip(classes.names, classes.palette, shares, strict=False) if s]
    entries = [(f"{name} {share:.1f} %", color) for name, color, share in known]
    return [*entries, (f"ignored {shares[len(classes) :].sum():.1f} %", (255, 255, 255))]
