"""COCO-Stuff 164K: 118287 train, 5000 val images, 182 label ids of which 171 occur.

H. Caesar, J. Uijlings, V. Ferrari: COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from cirkd_ray.data.base import DATASETS, Facts
from cirkd_ray.data.files import FileDataset, class_set, metadata, packaged_list
from cirkd_ray.data.label_map import LabelMap
from cirkd_ray.types import IGNORE_LABEL, ClassSet

_ABSENT = frozenset(metadata("coco_stuff_164k")["absent_ids"])
_ALL = class_set("coco_stuff_164k")
_PRESENT = tuple(i for i in range(len(_ALL)) if i not in _ABSENT)


@DATASETS.register("coco_stuff_164k")
class CocoStuff164k(FileDataset):
    """`images/train2017/X.jpg` with `annotations/train2017/X.png` (the stuffthingmaps), ...

    255 is ignored. The 182-class form, that of the reference, keeps the stored ids; 11 of them never occur.
    The 171-class form leaves these out and closes the gaps, in the same order.

    Args:
        split: `train` or `val`.
        root: the folder that holds `images` (or `train2017`) and `annotations` (or `stuffthingmaps`).
        label_set: 182 or 171 classes.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, or files of the split are missing.
    """

    default_crop: ClassVar[tuple[int, int]] = (512, 512)
    classes = _ALL
    facts = Facts(_ABSENT, labels="the PNG files of stuffthingmaps_trainval2017.zip")
    hint = "images/train2017, images/val2017, annotations/train2017, annotations/val2017"

    def __init__(
        self, *, split: str, root: str | Path, label_set: Literal[182, 171] = 182, subset: bool = False
    ) -> None:
        super().__init__(split=split, root=root, subset=subset)
        mapping = {i: i for i in range(len(_ALL))}
        if label_set == 171:
            mapping = {stored: k for k, stored in enumerate(_PRESENT)}
            names, palette = ([part[i] for i in _PRESENT] for part in (_ALL.names, _ALL.palette))
            self.facts = replace(self.facts, never=frozenset())
            self.classes = ClassSet(tuple(names), tuple(palette))  # type: ignore[arg-type]
        self.labels = LabelMap({**mapping, IGNORE_LABEL: IGNORE_LABEL})
        year = f"{split}2017"
        images = self.find_folder(f"images/{year}", year)
        parts = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017", "labels")
        labels = self.find_folder(*(f"{part}/{year}" for part in parts))
        self.paths = (f"{images}/{{}}.jpg", f"{labels}/{{}}.png")
        self.settle(packaged_list("coco_stuff_164k", split))
