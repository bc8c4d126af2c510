"""Your own data: folders of images and label maps, and a YAML file that says what the labels mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cirkd_ray.config.registry import validate
from cirkd_ray.data.base import DATASETS
from cirkd_ray.data.files import FileDataset, LabelMap
from cirkd_ray.data.storage import Storage
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.types import IGNORE_LABEL, PADDING_LABEL, ClassSet

DESCRIPTION = "dataset.yaml"
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_Byte = Annotated[int, Field(ge=0, le=255)]


class Description(BaseModel):
    """The content of `dataset.yaml`.

    Attributes:
        classes: names, in the order of the class indices.
        palette: a colour (RGB) for each class; by default those of `distinct_colour`.
        ids: stored label value -> name or index of the class; by default the value is the index.
        ignore: the stored value or values that do not count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1, max_length=PADDING_LABEL)
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...] | None = None
    ids: Mapping[_Byte, int | str] | None = None
    ignore: tuple[_Byte, ...] = (IGNORE_LABEL,)

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a name comes twice")
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"palette: {len(self.palette)} colours for {len(self.classes)} classes")
        for value, target in (self.ids or {}).items():
            known = target in self.classes if isinstance(target, str) else 0 <= target < len(self.classes)
            if not known:
                raise ValueError(f"ids.{value}: no class {target!r}")
            if value in self.ignore:
                raise ValueError(f"ids.{value}: the value is also in ignore")
        return self

    def class_set(self) -> ClassSet:
        """Names and palette."""
        colours = self.palette or tuple(distinct_colour(k) for k in range(len(self.classes)))
        return ClassSet(self.classes, colours)

    def label_map(self) -> LabelMap:
        """The map from stored values to class indices."""
        ids = self.ids if self.ids is not None else {k: k for k in range(len(self.classes))}
        mapping = {value: self.classes.index(k) if isinstance(k, str) else k for value, k in ids.items()}
        # `ignore` is given by the user, so it wins over the default indices.
        return LabelMap({**mapping, **dict.fromkeys(self.ignore, IGNORE_LABEL)})


@DATASETS.register("folder")
class Folder(FileDataset):
    """`images/SPLIT/**/X.jpg` with `labels/SPLIT/**/X.png`, described by `dataset.yaml`.

    Instead of folders a list `SPLIT.txt` may name the samples of a split, one a line, as paths below
    `images/` without extension. Any split name will do. Labels are gray or palette PNGs of stored values.

    Args:
        split: the name of the folders or of the list.
        root: the folder that holds `dataset.yaml`, `images` and `labels`.
        subset: leave out images without labels, and listed samples without files; of images that share a name
            take the first.

    Raises:
        DataError: the description is missing or wrong, a folder is missing, two images share a name, or files
            are missing.
    """

    splits: ClassVar[tuple[str, ...]] = ()
    hint = f"{DESCRIPTION}, images/SPLIT/ and labels/SPLIT/ (or images/, labels/ and SPLIT.txt)"

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        super().__init__(split=split, root=root, subset=subset)
        description = read_description(self.storage)
        self.classes, self.labels = description.class_set(), description.label_map()
        listed = f"{split}.txt" in self.storage.names("")
        prefix = "" if listed else f"{split}/"
        for folder in ("images", "labels"):
            self.find_folder(f"{folder}/{prefix}".rstrip("/"))
        found = _walk(self.storage, "images", prefix.rstrip("/"))
        images = _by_stem(found)
        self._extensions = {stem: paths[0].removeprefix(stem) for stem, paths in images.items()}
        ids = sorted(images, key=_natural)
        if listed:
            lines = self.storage.read(f"{split}.txt").decode("utf-8", errors="replace").splitlines()
            ids = [line.strip() for line in lines if line.strip()]
        several = (images[stem] for stem in dict.fromkeys(ids) if len(images.get(stem, ())) > 1)
        self.duplicates = [" and ".join(f"images/{path}" for path in paths) for paths in several]
        self.settle(ids)
        if subset and not listed:
            labelled = _by_stem(_walk(self.storage, "labels", split))
            self.missing += [f"images/{stem}.*" for stem in labelled if stem not in images]

    def image_file(self, sample_id: str) -> str:
        """`images/train/tokyo/0001.jpg`."""
        return f"images/{sample_id}{self._extensions.get(sample_id, '.png')}"

    def label_file(self, sample_id: str) -> str:
        """`labels/train/tokyo/0001.png`."""
        return f"labels/{sample_id}.png"


def read_description(storage: Storage) -> Description:
    """The checked content of `dataset.yaml`.

    Raises:
        DataError: it is missing, no YAML, or wrong; the key is named.
    """
    where = storage.where(DESCRIPTION)
    if DESCRIPTION not in storage.names(""):
        raise DataError(
            f"{where}: no such file; it lists the classes (classes: [road, sky, ...]; see Data in the README)"
        )
    try:
        content = yaml.safe_load(storage.read(DESCRIPTION))
    except yaml.YAMLError as error:
        raise DataError(f"{where}: not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a mapping with the key `classes`")
    try:
        description = validate(Description, content, where)
    except ConfigError as error:
        raise DataError(str(error)) from None
    assert isinstance(description, Description)
    return description


def distinct_colour(index: int) -> tuple[int, int, int]:
    """A colour for class `index` that no other class has: that of index + 1 in VOC's colour map."""
    red, green, blue = (
        sum(((index + 1) >> (3 * k + channel) & 1) << (7 - k) for k in range(8)) for channel in range(3)
    )
    return red, green, blue


def _walk(storage: Storage, top: str, below: str) -> list[str]:
    """Paths below `top`, under the folder `below` of it, of all images."""
    found: list[str] = []
    for name in storage.names(f"{top}/{below}".rstrip("/")):
        path = f"{below}/{name}".lstrip("/")
        if name.lower().endswith(_EXTENSIONS):
            found.append(path)
        else:
            found += _walk(storage, top, path)
    return found


def _by_stem(paths: list[str]) -> dict[str, list[str]]:
    """Path without extension -> the paths that have it."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(path.rpartition(".")[0], []).append(path)
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which frame9 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
