"""CamVid in the 11-class form of SegNet: 367 train, 101 val, 233 test images of 480 x 360.

G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, Pattern Recognition Letters 2009.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from cirkd_ray.data.base import DATASETS, Facts
from cirkd_ray.data.files import FileDataset, class_set, metadata
from cirkd_ray.data.label_map import ColourMap, LabelMap
from cirkd_ray.data.masks import decode_mask
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL

_SUFFIX = "_L.png"
_CONVERT = (
    "read them with --set data.form=original, or convert them to the 11 classes: "
    "`cirkd data prepare camvid ROOT OUT --set form=original`"
)


def _merged_colours() -> ColourMap:
    """The original 32 colours -> SegNet's 11 classes."""
    rows = metadata("camvid")["original"]
    names = class_set("camvid").names
    mapping = {(r, g, b): names.index(to) if to else IGNORE_LABEL for _, r, g, b, to in rows}
    return ColourMap(mapping, names)


@DATASETS.register("camvid")
class CamVid(FileDataset):
    """`train/X.png` with labels `trainannot/X.png`, and so on for `val` and `test`.

    A split is what `lists/camvid_SPLIT_list.txt` (or SegNet's `SPLIT.txt`) names, or what its two folders
    hold where there is no list; `trainval` is train followed by val.

    The original set's masks of 32 colours, `trainannot/X_L.png` or `X.png`, are read with `form=original`:
    they become SegNet's 11 classes, as its authors merged them.

    Args:
        split: `train`, `val`, `test` or `trainval`.
        root: the folder that holds them.
        form: of the label maps: `segnet`, indices 0..11, or `original`, 32 colours.
        subset: use the files that are there, rather than refuse a set with holes.

    Raises:
        DataError: the folders are not there, the split is empty, or files of it are missing.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "trainval")
    default_crop: ClassVar[tuple[int, int]] = (360, 360)
    classes = class_set("camvid")
    labels = LabelMap({**{i: i for i in range(11)}, 11: IGNORE_LABEL})
    facts = Facts(size=(360, 480), counts=metadata("camvid")["splits"], least={3: 0.08})
    stored_only = frozenset({"subset", "form"})
    colour_hint = f"of the original CamVid's 32 colours? {_CONVERT}"
    hint = "train/ trainannot/ val/ valannot/ test/ testannot/ with NAME.png files"

    def __init__(
        self,
        *,
        split: str,
        root: str | Path,
        form: Literal["segnet", "original"] = "segnet",
        subset: bool = False,
    ) -> None:
        super().__init__(split=split, root=root, subset=subset)
        ids: list[str] = []
        if form == "original":
            self.colours, self.facts = _merged_colours(), replace(self.facts, size=None)
        self._suffixed: dict[str, frozenset[str]] = {}
        for part in ("train", "val") if split == "trainval" else (split,):
            for folder in (part, f"{part}annot"):
                self.find_folder(folder)
            held = self.storage.names(f"{part}annot") if form == "original" else ()
            self._suffixed[part] = frozenset(name for name in held if name.endswith(_SUFFIX))
            ids += self._listed(part)
        self.settle(ids)

    def image_file(self, sample_id: str) -> str:
        """`train/0001TP_006690.png`."""
        return sample_id

    def label_file(self, sample_id: str) -> str:
        """`trainannot/0001TP_006690.png`, or `trainannot/0001TP_006690_L.png` of the original set."""
        part, _, name = sample_id.partition("/")
        suffixed = name.removesuffix(".png") + _SUFFIX
        return f"{part}annot/{suffixed if suffixed in self._suffixed[part] else name}"

    def how_to_pair(self, path: str, near: str) -> str:
        """The original set's names are told by their end, its colours by a look into the file."""
        if not near.endswith(_SUFFIX):
            return ""
        folder = path.rpartition("/")[0]
        mask = decode_mask(self.storage.read(f"{folder}/{near}"), near)
        what = (
            "in the 32 colours of the original CamVid" if mask.ndim == 3 else "without colours: rename them"
        )
        return f", {what}{f': {_CONVERT}' if mask.ndim == 3 else ''}"

    def _listed(self, part: str) -> list[str]:
        """The image paths of one folder, in the list's order."""
        for folder, name in (("lists", f"camvid_{part}_list.txt"), ("", f"{part}.txt")):
            if name in self.storage.names(folder):
                path = f"{folder}/{name}" if folder else name
                return [self._entry(line, part, path) for line in self._lines(path)]
        # Labels without images are missed, too, as every image is without a list.
        labels = set(self.storage.names(f"{part}annot"))
        if part in self._suffixed:
            labels = {
                name.removesuffix(_SUFFIX) + ".png" if name in self._suffixed[part] else name
                for name in labels
            }
        names = {*self.storage.names(part), *labels}
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
