"""CamVid in the 11-class form of SegNet: 367 train, 101 val, 233 test images of 480 x 360.

G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, Pattern Recognition Letters 2009.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cirkd_ray.data.base import DATASETS
from cirkd_ray.data.files import FileDataset, LabelMap, class_set
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL


@DATASETS.register("camvid")
class CamVid(FileDataset):
    """`train/X.png` with labels `trainannot/X.png`, and so on for `val` and `test`.

    A split is what `lists/camvid_SPLIT_list.txt` (or SegNet's `SPLIT.txt`) names, or what its two folders
    hold where there is no list; `trainval` is train followed by val.

    Args:
        split: `train`, `val`, `test` or `trainval`.
        root: the folder that holds them.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, the split is empty, or files of it are missing.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "trainval")
    default_crop: ClassVar[tuple[int, int]] = (360, 360)
    classes = class_set("camvid")
    labels = LabelMap({**{i: i for i in range(11)}, 11: IGNORE_LABEL})
    hint = "train/ trainannot/ val/ valannot/ test/ testannot/ with NAME.png files"

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        super().__init__(split=split, root=root, subset=subset)
        ids: list[str] = []
        for part in ("train", "val") if split == "trainval" else (split,):
            for folder in (part, f"{part}annot"):
                self.find_folder(folder)
            ids += self._listed(part)
        self.settle(ids)

    def image_file(self, sample_id: str) -> str:
        """`train/0001TP_006690.png`."""
        return sample_id

    def label_file(self, sample_id: str) -> str:
        """`trainannot/0001TP_006690.png`."""
        return sample_id.replace("/", "annot/", 1)

    def _listed(self, part: str) -> list[str]:
        """The image paths of one folder, in the list's order."""
        for folder, name in (("lists", f"camvid_{part}_list.txt"), ("", f"{part}.txt")):
            if name in self.storage.names(folder):
                path = f"{folder}/{name}" if folder else name
                return [self._entry(line, part, path) for line in self._lines(path)]
        # Labels without images are missed, too, as every image is without a list.
        names = {*self.storage.names(part), *self.storage.names(f"{part}annot")}
        return [f"{part}/{name}" for name in sorted(names) if name.endswith(".png")]

    def _lines(self, path: str) -> list[str]:
        text = self.storage.read(path).decode("utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def _entry(self, line: str, part: str, path: str) -> str:
        # SegNet's own lists name absolute paths (/SegNet/CamVid/train/X.png): the last two parts are what
        # counts.
        parts = line.split()[0].split("/")[-2:]
        if len(parts) != 2 or parts[0] != part:
            raise DataError(
                f"{self.storage.where(path)}: a line does not name an image of {part}/: {line.strip()[:80]}"
            )
        return "/".join(parts)
