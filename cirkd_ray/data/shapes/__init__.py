"""The embedded data set: street scenes that are drawn, nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field

from cirkd_ray.data.base import DATASETS, Sample, SegmentationDataset, Stamp, UInt8
from cirkd_ray.data.sampler import keyed_generator
from cirkd_ray.data.shapes.scene import CLASSES, draw_street
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL

__all__ = ["CLASSES", "Shapes", "draw_street"]
_SCENES = {"train": 16, "val": 17}
DRAWING = 2
"""Raised with every change of what is drawn, so that no teacher of other scenes is reused."""
KEPT_PIXELS = 2**23
"""Drawn scenes are kept up to so many pixels, which take four times as many bytes."""


@DATASETS.register("shapes")
class Shapes(SegmentationDataset):
    """Streets with houses, trees, cars, people, signs, in perspective, weather and noise.

    Scene n of a split is a pure function of (seed, n); train and val never share a scene. Colours alone tell
    little: pavements can have the road's colour, glass fronts the sky's; trunks look like posts, and posters
    like cars.

    Args:
        split: `train` or `val`.
        root: None; there are no files.
        height, width: of the images, in pixels.
        train_images, val_images: how many scenes the splits have.
        coarse: pixels on both sides of every edge that training labels leave out (0: none), so that
            small things are hardly labelled, as by annotators in a hurry. Validation labels are always whole.
        seed: another seed is another set.

    Raises:
        DataError: a root is given.
    """

    classes = CLASSES
    needs_root: ClassVar[bool] = False
    default_crop: ClassVar[tuple[int, int]] = (128, 256)

    def __init__(
        self,
        *,
        split: str,
        root: str | Path | None,
        height: Annotated[int, Field(ge=32, le=4096)] = 128,
        width: Annotated[int, Field(ge=32, le=4096)] = 256,
        train_images: Annotated[int, Field(ge=1)] = 2000,
        val_images: Annotated[int, Field(ge=1)] = 200,
        coarse: Annotated[int, Field(ge=0, le=256)] = 0,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        if root is not None:
            raise DataError(f"data.root: 'shapes' is drawn and reads no files; leave out {str(root)!r}")
        self.split, self.size, self.seed = split, (height, width), seed
        train = split == "train"
        self.count, self.coarse = (train_images, coarse) if train else (val_images, 0)
        self._drawn: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """`val_000012`."""
        return f"{self.split}_{index:06d}"

    def stamps(self) -> dict[str, Stamp]:
        """The version of the drawing and what it is drawn from."""
        return {"drawing": (DRAWING, self.seed, *self.size, self.count, self.coarse)}

    def load(self, index: int) -> Sample:
        """Draw the scene, or give the one that was drawn before; nobody writes into it."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.split} has {self.count} scenes, no number {index}")
        if index not in self._drawn:
            rng = np.random.Generator(keyed_generator(self.seed, _SCENES[self.split], index))
            image, label = draw_street(rng, *self.size)
            if self.coarse:
                label = without_edges(label, self.coarse)
            if len(self._drawn) >= KEPT_PIXELS // label.size:
                self._drawn.clear()
            self._drawn[index] = Sample(image, label, self.name(index))
        return self._drawn[index]


def without_edges(label: UInt8, width: int) -> UInt8:
    """The label map, ignored up to `width` pixels from every edge between classes."""
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return np.where(cv2.morphologyEx(label, cv2.MORPH_GRADIENT, around) > 0, np.uint8(IGNORE_LABEL), label)
