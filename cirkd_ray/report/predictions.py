"""Images beside their truth and predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.evaluate.pictures import Picture
from cirkd_ray.report import pictures
from cirkd_ray.types import ClassSet

UInt8 = NDArray[np.uint8]


def side_by_side(
    shown: Sequence[Picture],
    classes: ClassSet,
    *,
    height: int = 256,
    width: int = 512,
    captions: Sequence[str] | None = None,
    errors: bool = False,
    student: str = "student",
) -> UInt8:
    """A row per image: image | truth | student | teacher (if any), and a legend of the classes seen.

    Args:
        shown: at least one picture.
        classes: names and colours.
        height, width: largest size of each part; larger ones are shrunk.
        captions: a text per row; the pictures' names by default.
        errors: add a column that shows where the student is wrong.
        student: what to call the student.
    """
    teacher = any(picture.teacher is not None for picture in shown)
    columns = [
        "image",
        "truth",
        student,
        *(["wrong pixels"] if errors else []),
        *(["teacher"] if teacher else []),
    ]
    rows, present = [], set()
    for picture in shown:
        small = pictures.shrink(picture.image, height, width)
        maps = [picture.truth, picture.student, *([picture.teacher] if picture.teacher is not None else [])]
        fitted = [pictures.shrink(labels, height, width, labels=True) for labels in maps]
        present |= {int(k) for labels in fitted for k in np.unique(labels)}
        colored = [pictures.colorize(labels, classes) for labels in fitted]
        if errors:
            colored.insert(2, pictures.mistakes(fitted[0], fitted[1]))
        rows.append([small, *colored])
    names = [picture.name for picture in shown] if captions is None else captions
    body = pictures.grid(rows, columns, names)
    return pictures.stack([body, pictures.legend(classes, body.shape[1], present)])
