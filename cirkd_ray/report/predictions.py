"""Predictions as pictures: beside images and truth, and as files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cirkd_ray.data.base import UInt8
from cirkd_ray.data_tools import pictures
from cirkd_ray.evaluate.pictures import Picture
from cirkd_ray.evaluate.predict import ImageToPredict, Prediction
from cirkd_ray.files import remove_old
from cirkd_ray.types import ClassSet

FORMS = {"colors": ".png", "blends": ".jpg", "ids": ".png"}
"""What can be written: the data set's colours, the image under these colours, and 8-bit class indices."""


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
    teacher = ["teacher"] if any(picture.teacher is not None for picture in shown) else []
    columns = ["image", "truth", student, *(["wrong pixels"] if errors else []), *teacher]
    rows, present = [], set()
    for picture in shown:
        maps = [picture.truth, picture.student, *([picture.teacher] if picture.teacher is not None else [])]
        fitted = [pictures.fit(labels, height, width, labels=True) for labels in maps]
        present |= {int(k) for labels in fitted for k in np.unique(labels)}
        colored = [pictures.colorize(labels, classes) for labels in fitted]
        if errors:
            colored.insert(2, pictures.mistakes(fitted[0], fitted[1]))
        rows.append([pictures.fit(picture.image, height, width), *colored])
    names = [picture.name for picture in shown] if captions is None else captions
    body = pictures.grid(rows, columns, names)
    return pictures.stack([body, pictures.legend(pictures.class_entries(classes, present), body.shape[1])])


def without_old(
    sources: Iterable[ImageToPredict], folder: Path, forms: Collection[str]
) -> Iterator[ImageToPredict]:
    """The same images; what an earlier call wrote of each below `folder` is deleted before it is predicted.

    That is what will be written again, in these forms, and every form of an image that cannot be read.

    Raises:
        ConfigError: it cannot be deleted.
    """
    for source in sources:
        old = FORMS if source.image is None else forms
        remove_old(*(prediction_path(folder, source.name, form) for form in old))
        yield source


def prediction_path(folder: Path, name: str, form: str) -> Path:
    """Where the prediction of an image goes."""
    return folder / form / f"{name}{FORMS[form]}"


def write_prediction(
    folder: Path, prediction: Prediction, classes: ClassSet, forms: Collection[str]
) -> list[Path]:
    """Write `FORM/NAME.SUFFIX` below `folder` for each of the forms.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full.
    """
    written = []
    for form in forms:
        path = prediction_path(folder, prediction.name, form)
        if form == "ids":
            picture = prediction.labels
        elif form == "colors":
            picture = pictures.colorize(prediction.labels, classes)
        else:
            picture = pictures.blend(prediction.image, prediction.labels, classes)
        pictures.save_picture(path, picture)
        written.append(path)
    return written
