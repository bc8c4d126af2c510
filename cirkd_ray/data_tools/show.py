"""A contact sheet: images with their labels laid over them, and the classes that occur."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.sampler import sample_rng
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.types import ClassSet

_MARGIN, _LINE = 8, 18


def pick_samples(
    data: SegmentationDataset, count: int, start: int | None = None, augmented: bool = False
) -> list[Sample]:
    """Samples to look at.

    Args:
        data: the data set.
        count: how many, at most.
        start: the first of them; None spreads them evenly.
        augmented: training crops instead of whole images.
    """
    count = min(count, len(data))
    spread = np.linspace(0, len(data) - 1, count).astype(int).tolist()
    samples = []
    for n in spread if start is None else range(start, min(start + count, len(data))):
        sample = data.load(n)
        if augmented:
            image, label = TrainTransform(crop=data.default_crop)(sample, sample_rng(0, n))
            sample = Sample(image, label, sample.name)
        samples.append(sample)
    return samples


def contact_sheet(samples: Sequence[Sample], classes: ClassSet, columns: int = 3, width: int = 360) -> UInt8:
    """H x W x 3 uint8, RGB: each sample as image beside overlay, its name below, and a legend at the bottom.

    Ignored pixels stay as they are; edges of labels are drawn, so that a shift of a few pixels is seen.

    Args:
        samples: what to show.
        classes: names and colours.
        columns: samples side by side.
        width: pixels that each picture may be wide; it may be 3/4 of that high.
    """
    cells = [_cell(sample, classes, width) for sample in samples]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    total = columns * (cells[0].width + _MARGIN) + _MARGIN
    legend = _legend(samples, classes, total)
    sheet = Image.new("RGB", (total, sum(heights) + _MARGIN * (len(rows) + 1) + legend.height), "white")
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_MARGIN + column * (cell.width + _MARGIN), top))
        top += height + _MARGIN
    sheet.paste(legend, (0, top))
    return np.asarray(sheet)


def overlay(image: UInt8, label: UInt8, classes: ClassSet, opacity: float = 0.55) -> UInt8:
    """The image with the classes' colours over it; ignored pixels stay, edges of labels are white."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.array(classes.palette, np.uint8)
    blend = cv2.addWeighted(image, 1 - opacity, table[label], opacity, 0)
    blend = np.where((label < len(classes))[..., None], blend, image)
    edge = cv2.morphologyEx(label, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    blend[edge] = 255
    return np.asarray(blend, np.uint8)


def _cell(sample: Sample, classes: ClassSet, width: int) -> Image.Image:
    height = 3 * width // 4
    scale = min(width / sample.image.shape[1], height / sample.image.shape[0])
    size = (max(1, round(scale * sample.image.shape[1])), max(1, round(scale * sample.image.shape[0])))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(sample.image, size, interpolation=way), np.uint8)
    label = np.asarray(cv2.resize(sample.label, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    pair = Image.fromarray(np.hstack([image, overlay(image, label, classes)]))
    cell = Image.new("RGB", (2 * width, pair.height + _LINE), "white")
    cell.paste(pair, (0, 0))
    ImageDraw.Draw(cell).text((2, pair.height + 1), sample.name[-80:], fill="black", font=_font())
    return cell


def _legend(samples: Sequence[Sample], classes: ClassSet, width: int) -> Image.Image:
    """Colour, name and share of every class that occurs, and of ignored pixels."""
    counts = np.sum([np.bincount(sample.label.ravel(), minlength=256) for sample in samples], axis=0)
    shares = counts / max(1, counts.sum())
    present = [k for k in range(len(classes)) if counts[k]]
    entries = [(classes.palette[k], f"{classes.names[k]} {100 * shares[k]:.1f} %") for k in present]
    entries.append(((255, 255, 255), f"ignored {100 * shares[len(classes) :].sum():.1f} %"))
    each = 170
    columns = max(1, width // each)
    legend = Image.new("RGB", (width, _LINE * (-(-len(entries) // columns)) + _MARGIN), "white")
    draw = ImageDraw.Draw(legend)
    for number, (colour, text) in enumerate(entries):
        x, y = _MARGIN + number % columns * each, number // columns * _LINE
        draw.rectangle((x, y, x + 12, y + 12), fill=colour, outline="black")
        draw.text((x + 17, y), text, fill="black", font=_font())
    return legend


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=11)
