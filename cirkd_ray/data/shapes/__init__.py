"""The embedded data set: street scenes that are drawn, nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from cirkd_ray.data.base import DATASETS, Sample, SegmentationDataset
from cirkd_ray.data.sampler import keyed_generator
from cirkd_ray.data.shapes.scene import CLASSES, draw_street
from cirkd_ray.errors import DataError

__all__ = ["CLASSES", "Shapes", "draw_street"]
_SCENES = {"train": 16, "val": 17}


@DATASETS.register("shapes")
class Shapes(SegmentationDataset):
    """Streets with houses, trees, cars, people and thin things, in perspective, weather and noise.

    Scene n of a split is a pure function of (seed, n); train and val never share a scene. Colours alone tell
    little: pavements can have the road's colour, glass fronts the sky's; trunks look like poles, and posters
    like cars.

    Args:
        split: `train` or `val`.
        root: None; there are no files.
        height, width: of the images, in pixels.
        train_images, val_images: how many scenes the splits have.
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
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        if root is not None:
            raise DataError(f"data.root: 'shapes' is drawn and reads no files; leave out {str(root)!r}")
        self.split, self.size, self.seed = split, (height, width), seed
        self.count = train_images if split == "train" else val_images

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """`val_000012`."""
        return f"{self.split}_{index:06d}"

    def load(self, index: int) -> Sample:
        """Draw the scene."""
        if not 0 <= index < self.count:
            raise IndexError(f"{self.split} has {self.count} scenes, no number {index}")
        rng = np.random.Generator(keyed_generator(self.seed, _SCENES[self.split], index))
        image, label = draw_street(rng, *self.size)
        return Sample(image, label, self.name(index))
