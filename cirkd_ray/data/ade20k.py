"""ADE20K in the form of SceneParse150: 20210 train, 2000 val images, 150 classes.

B. Zhou et al.: Scene Parsing through ADE20K Dataset, CVPR 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cirkd_ray.data.base import DATASETS, Facts
from cirkd_ray.data.files import FileDataset, class_set, metadata
from cirkd_ray.data.label_map import LabelMap
from cirkd_ray.types import IGNORE_LABEL


@DATASETS.register("ade20k")
class ADE20K(FileDataset):
    """`images/training/ADE_train_00000001.jpg` with `annotations/training/ADE_train_00000001.png`, ...

    Stored 1..150 are the classes 0..149; stored 0 is ignored. Padding is marked after this map, so it never
    becomes a class (in the reference it is ignored only because bytes saturate).

    Args:
        split: `train` or `val`.
        root: the folder that holds `images` and `annotations`, or one that holds `ADEChallengeData2016`.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, or files of the split are missing.
    """

    default_crop: ClassVar[tuple[int, int]] = (512, 512)
    classes = class_set("ade20k")
    labels = LabelMap({0: IGNORE_LABEL, **{value: value - 1 for value in range(1, 151)}})
    facts = Facts(labels="the PNG files of ADEChallengeData2016.zip, in which 0 is ignored")
    hint = "images/training, images/validation, annotations/training, annotations/validation"

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        super().__init__(split=split, root=root, subset=subset)
        part = {"train": "training", "val": "validation"}[split]
        images = self.find_folder(*(f"{base}images/{part}" for base in ("", "ADEChallengeData2016/")))
        labels = self.find_folder(images.replace("images", "annotations"))
        self.paths = (f"{images}/{{}}.jpg", f"{labels}/{{}}.png")
        count = metadata("ade20k")["splits"][split]
        self.settle(f"ADE_{split}_{number:08d}" for number in range(1, count + 1))
