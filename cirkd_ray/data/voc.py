"""Pascal VOC 2012 with SBD's additional labels ("VOC Aug"): 10582 train, 1449 val images, 21 classes.

M. Everingham et al.: The Pascal Visual Object Classes Challenge, IJCV 2010; B. Hariharan et al.: Semantic
Contours from Inverse Detectors, ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cirkd_ray.data.base import DATASETS, Facts
from cirkd_ray.data.files import FileDataset, class_set, packaged_list
from cirkd_ray.data.label_map import LabelMap
from cirkd_ray.types import IGNORE_LABEL


@DATASETS.register("voc")
class VOC(FileDataset):
    """`JPEGImages/X.jpg` with `SegmentationClassAug/X.png`, or `SegmentationClass/X.png` for val.

    Labels may be gray or palette PNGs: both are read as indices. 255 is ignored. (The reference turns the
    colours of palette PNGs to gray, so that class 12 becomes 33.)

    Args:
        split: `train` (the list known as train_aug) or `val`.
        root: the folder that holds `JPEGImages`, or one that holds `VOCdevkit/VOC2012`.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, or files of the split are missing.
    """

    default_crop: ClassVar[tuple[int, int]] = (512, 512)
    classes = class_set("voc")
    labels = LabelMap({**{i: i for i in range(21)}, IGNORE_LABEL: IGNORE_LABEL})
    facts = Facts(least={0: 0.2}, labels="those of SegmentationClassAug, in which 0 is the background")
    hint = "JPEGImages/ and SegmentationClassAug/, there or in VOCdevkit/VOC2012/"

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        super().__init__(split=split, root=root, subset=subset)
        bases = ("", "VOC2012/", "VOCdevkit/VOC2012/")
        images = self.find_folder(*(f"{base}JPEGImages" for base in bases))
        base, both = images.removesuffix("JPEGImages"), ("SegmentationClassAug", "SegmentationClass")
        labels = self.find_folder(*(base + name for name in (both if split == "train" else both[::-1])))
        self.paths = (f"{images}/{{}}.jpg", f"{labels}/{{}}.png")
        self.settle(packaged_list("voc", split))
