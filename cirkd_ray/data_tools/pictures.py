"""Pictures of images, label maps and predictions: uint8 arrays, H x W x 3, RGB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cirkd_ray.data.base import UInt8
from cirkd_ray.files import told, write_bytes
from cirkd_ray.types import PADDING_LABEL, ClassSet

Color = tuple[int, int, int]

BACKGROUND = 255
_TEXT = (30, 30, 30)
_LINE = 20
_MARGIN = 6


def color_table(classes: ClassSet) -> UInt8:
    """256 x 3: the colour of every value of a label map.

    Ignored values (254, 255) are black, or VOC's light void colour where a class is black. Values that are no
    class are magenta, so that a mistake shows.
    """
    table = np.full((256, 3), (255, 0, 255), dtype=np.uint8)
    table[: len(classes)] = np.array(classes.palette, dtype=np.uint8).reshape(-1, 3)
    table[PADDING_LABEL:] = (224, 224, 192) if (0, 0, 0) in classes.palette else (0, 0, 0)
    return table


def colorize(labels: UInt8, classes: ClassSet) -> UInt8:
    """A label map (H x W, class index, 254 and 255 ignored) in the data set's colours: H x W x 3."""
    colors: UInt8 = color_table(classes)[labels]
    return colors


def blend(image: UInt8, labels: UInt8, classes: ClassSet, alpha: float = 0.5) -> UInt8:
    """The image under the classes' colours at opacity `alpha`; ignored pixels stay as they are."""
    if image.shape[:2] != labels.shape:
        raise ValueError(f"an image of {image.shape[:2]} pixels but labels of {labels.shape}")
    mixed = image * (1 - alpha) + colorize(labels, classes) * alpha
    shown: UInt8 = np.where((labels >= PADDING_LABEL)[..., None], image, mixed.round()).astype(np.uint8)
    return shown


def mistakes(truth: UInt8, prediction: UInt8) -> UInt8:
    """Where the prediction is wrong: right pixels light, wrong ones red, ignored ones gray. H x W x 3."""
    result = np.full((*truth.shape, 3), 235, dtype=np.uint8)
    result[truth != prediction] = (205, 30, 45)
    result[truth >= PADDING_LABEL] = 150
    return result


def outlined(picture: UInt8, labels: UInt8) -> UInt8:
    """The picture with the edges of the labels in white, so that a shift of a few pixels is seen."""
    result = picture.copy()
    result[cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0] = 255
    return result


def fit(
    picture: UInt8,
    height: int | None = None,
    width: int | None = None,
    *,
    labels: bool = False,
    enlarge: bool = False,
) -> UInt8:
    """The picture in `height` x `width`, same proportions; label maps by nearest neighbour.

    A smaller picture keeps its size, unless `enlarge`.
    """
    factor = min((height or np.inf) / picture.shape[0], (width or np.inf) / picture.shape[1])
    if factor == 1.0 or (factor > 1.0 and not enlarge):
        return picture
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    method = cv2.INTER_NEAREST if labels else cv2.INTER_AREA if factor < 1.0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), dtype=np.uint8)


def grid(
    rows: Sequence[Sequence[UInt8]],
    columns: Sequence[str] = (),
    captions: Sequence[str] = (),
    gap: int = _MARGIN,
) -> UInt8:
    """Pictures in rows, with the columns' names above and a line of text above each row.

    Args:
        rows: pictures; in a row they may differ in size, and rows may differ in length.
        columns: names of the columns, or none.
        captions: a text a row, or none.
        gap: pixels between pictures.

    Returns:
        One picture, H x W x 3.

    Raises:
        ValueError: no picture at all.
    """
    if not any(rows):
        raise ValueError("a grid needs at least one picture")
    widths = [max(row[i].shape[1] for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    names = [text_line(name, width) for name, width in zip(columns, widths, strict=False)]
    strips = [_row(names, widths, gap)] if columns else []
    for number, row in enumerate(rows):
        if number < len(captions) and captions[number]:
            strips.append(text_line(captions[number], sum(widths) + gap * (len(widths) - 1)))
        strips.append(_row(row, widths, gap))
    return stack(strips, gap)


def stack(strips: Iterable[UInt8], gap: int = _MARGIN) -> UInt8:
    """Pictures below each other on white, left-aligned, with a margin around them."""
    parts = list(strips)
    width = max(part.shape[1] for part in parts) + 2 * gap
    height = sum(part.shape[0] + gap for part in parts) + gap
    canvas = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    top = gap
    for part in parts:
        canvas[top : top + part.shape[0], gap : gap + part.shape[1]] = part
        top += part.shape[0] + gap
    return canvas


def legend(entries: Iterable[tuple[str, Color]], width: int) -> UInt8:
    """Colour patches with names, in as many lines as fit into `width` pixels."""
    placed, left, line = [], 0, 0
    for name, color in entries:
        length = _LINE + round(_font().getlength(name)) + 2 * _MARGIN
        if left and left + length > width:
            left, line = 0, line + 1
        placed.append((name, color, left, line * _LINE))
        left += length
    canvas = Image.new("RGB", (width, (line + 1) * _LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for name, color, x, y in placed:
        draw.rectangle((x, y + 3, x + _LINE - 6, y + _LINE - 4), fill=color, outline=(90, 90, 90))
        draw.text((x + _LINE, y + 2), name, fill=_TEXT, font=_font())
    return np.array(canvas)


def class_entries(classes: ClassSet, present: Iterable[int]) -> list[tuple[str, Color]]:
    """For a legend: name and colour of the classes among these values of label maps."""
    return [(classes.names[k], classes.palette[k]) for k in sorted(set(present)) if k < len(classes)]


def text_line(text: str, width: int) -> UInt8:
    """A line of text, cut with dots where it is longer than `width` pixels."""
    while len(text) > 1 and _font().getlength(text) > width:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else text[:-1]
    canvas = Image.new("RGB", (width, _LINE), "white")
    ImageDraw.Draw(canvas).text((0, 2), text, fill=_TEXT, font=_font())
    return np.array(canvas)


def _row(pictures: Sequence[UInt8], widths: Sequence[int], gap: int) -> UInt8:
    height = max((picture.shape[0] for picture in pictures), default=1)
    canvas = np.full((height, sum(widths) + gap * (len(widths) - 1), 3), BACKGROUND, dtype=np.uint8)
    left = 0
    for picture, width in zip(pictures, widths, strict=False):
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += width + gap
    return canvas


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)


def save_picture(path: Path, picture: UInt8) -> None:
    """Write a picture (H x W x 3) or a map (H x W) in the format of the path's suffix; folders are made.

    Raises:
        ConfigError: the disk is full or not writable.
    """
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    whole, encoded = cv2.imencode(path.suffix, stored)
    if not whole:
        raise ValueError(f"{path}: a picture of shape {picture.shape} cannot be encoded")
    with told(path):
        write_bytes(path, encoded.tobytes())
