"""Cityscapes: 2975 train, 500 val, 1525 test images of 2048 x 1024, 19 classes.

M. Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cirkd_ray.data.base import DATASETS, Facts
from cirkd_ray.data.files import FileDataset, class_set, metadata, packaged_list
from cirkd_ray.data.label_map import LabelMap
from cirkd_ray.types import IGNORE_LABEL

LABEL_IDS: tuple[int, ...] = tuple(metadata("cityscapes")["label_ids"])
"""The id that the official label files and the test server use for class k."""


@DATASETS.register("cityscapes")
class Cityscapes(FileDataset):
    """`leftImg8bit/SPLIT/CITY/X_leftImg8bit.png` with `gtFine/SPLIT/CITY/X_gtFine_labelIds.png`.

    The ids 0..33 of the label files become the 19 training classes; the other 15 are ignored. The test split
    has images only.

    Args:
        split: `train`, `val` or `test`.
        root: the folder that holds `leftImg8bit` and `gtFine`.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, or files of the split are missing.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    default_crop: ClassVar[tuple[int, int]] = (512, 1024)
    classes = class_set("cityscapes")
    labels = LabelMap(
        {**dict.fromkeys(range(34), IGNORE_LABEL), **{label_id: k for k, label_id in enumerate(LABEL_IDS)}}
    )
    facts = Facts(size=(1024, 2048), least={0: 0.1}, labels="the gtFine files that end in _labelIds.png")
    hint = "leftImg8bit/train/CITY/ and gtFine/train/CITY/ (and val, test), as in the official zip files"

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        super().__init__(split=split, root=root, subset=subset)
        self.has_labels = split != "test"
        for folder in ("leftImg8bit", "gtFine") if self.has_labels else ("leftImg8bit",):
            self.find_folder(f"{folder}/{split}")
        images, labels = (
            f"leftImg8bit/{split}/{{}}_leftImg8bit.png",
            f"gtFine/{split}/{{}}_gtFine_labelIds.png",
        )
        self.paths = (images, labels)
        self.settle(packaged_list("cityscapes", split))
