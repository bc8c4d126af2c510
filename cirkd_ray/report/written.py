"""Predictions as files: colour masks, blends and class indices."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cirkd_ray.evaluate.predict import Prediction
from cirkd_ray.report.pictures import blend, colorize, save_picture
from cirkd_ray.types import ClassSet

FORMS = {"colors": ".png", "blends": ".jpg", "ids": ".png"}
"""What can be written: the data set's colours, the image under these colours, and 8-bit class indices."""


def write_prediction(
    folder: Path, prediction: Prediction, classes: ClassSet, forms: Collection[str]
) -> list[Path]:
    """Write `FORM/NAME.SUFFIX` below `folder` for each of the forms.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full.
    """
    written = []
    for form in forms:
        path = folder / form / f"{prediction.name}{FORMS[form]}"
        if form == "ids":
            picture = prediction.labels
        elif form == "colors":
            picture = colorize(prediction.labels, classes)
        else:
            picture = blend(prediction.image, prediction.labels, classes)
        save_picture(path, picture)
        written.append(path)
    return written
