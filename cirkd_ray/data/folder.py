"""Your own data: folders of images and label maps, and a YAML file that says what the labels mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cirkd_ray.config.registry import validate
from cirkd_ray.data.base import DATASETS
from cirkd_ray.data.codec import EXTENSIONS
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.label_map import Colour, ColourMap, LabelMap, some
from cirkd_ray.data.palettes import Used
from cirkd_ray.data.storage import Storage
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.types import IGNORE_LABEL, PADDING_LABEL, ClassSet

DESCRIPTION = "dataset.yaml"
_LABELS = (".png", ".tif", ".tiff")
_NOTES = ("txt", "json", "xml", "csv", "yaml", "yml", "md")
"""Ends of the names of files that may lie beside images and are none."""
_UNREAD, _SAVE = "a format that is not read", "save images as PNG or JPEG files"
_Byte = Annotated[int, Field(ge=0, le=255)]
_Colour = tuple[_Byte, _Byte, _Byte]


class Description(BaseModel):
    """The content of `dataset.yaml`.

    Attributes:
        classes: names, in the order of the class indices.
        palette: a colour (RGB) for each class; by default those of `distinct_colour`. Masks that are pictures
            of these colours are read as such.
        ids: stored label value -> name or index of the class; by default the value is the index.
        ignore: the stored value or values, or colours of masks, that do not count.
        label_suffix: what the names of labels have after the image's, such as `_mask`.
        range: the image values that become black and white, where they have more than 8 bits; by default
            measured on a few images of the set (see `cirkd_ray.data.scale`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field(min_length=1, max_length=PADDING_LABEL)
    palette: tuple[_Colour, ...] | None = None
    ids: Mapping[_Byte, int | str] | None = None
    ignore: tuple[_Byte | _Colour, ...] = (IGNORE_LABEL,)
    label_suffix: str = ""
    range: tuple[float, float] | None = None

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value

    @property
    def ignored(self) -> tuple[int, ...]:
        """The stored values among `ignore`."""
        return tuple(value for value in self.ignore if isinstance(value, int))

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
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range: {self.range[0]:g} is not below {self.range[1]:g}")
        if len({*(self.palette or ()), *self._ignored_colours}) < len(self.palette or ()) + len(
            self._ignored_colours
        ):
            raise ValueError("palette: a colour stands for two classes, or is also in ignore")
        self._all_occur()
        return self

    @property
    def _ignored_colours(self) -> tuple[Colour, ...]:
        return tuple(value for value in self.ignore if not isinstance(value, int))

    def _all_occur(self) -> None:
        """Refuse a class for which no stored value stands."""
        targets = set(self.label_map().table.tolist())
        lost = [name for k, name in enumerate(self.classes) if k not in targets]
        if not lost:
            return
        if self.ids is None:
            why, line = "its value is in ignore", _ids_line(dict(enumerate(self.classes)))
            if self.palette is not None and len(self.ignored) == 3:  # most likely meant as one colour
                line = f"ignore: [{list(self.ignored)}]"
        else:
            kept = {v: k if isinstance(k, str) else self.classes[k] for v, k in self.ids.items()}
            free = next(v for v in (IGNORE_LABEL, *range(256)) if v not in kept)
            why, line = "no value in ids stands for it", _ids_line({**kept, free: lost[0]})
        raise ValueError(
            f"classes: {lost[0]!r} cannot occur: {why}; write e.g. `{line}`, `ignore: []`, or leave it out"
        )

    def class_set(self) -> ClassSet:
        """Names and palette."""
        colours = self.palette or tuple(distinct_colour(k) for k in range(len(self.classes)))
        return ClassSet(self.classes, colours)

    def label_map(self) -> LabelMap:
        """The map from stored values to class indices."""
        ids = self.ids if self.ids is not None else {k: k for k in range(len(self.classes))}
        mapping = {value: self.classes.index(k) if isinstance(k, str) else k for value, k in ids.items()}
        # `ignore` is given by the user, so it wins over the default indices.
        hint = f"`ids: {{VALUE: CLASS, ...}}` in {DESCRIPTION} says what each value means"
        return LabelMap({**mapping, **dict.fromkeys(self.ignored, IGNORE_LABEL)}, hint)

    def colour_map(self) -> ColourMap | None:
        """The map from the palette's colours to class indices; None where no palette is given."""
        if self.palette is None:
            return None
        mapping = {colour: k for k, colour in enumerate(self.palette)}
        return ColourMap({**mapping, **dict.fromkeys(self._ignored_colours, IGNORE_LABEL)}, self.classes)


@DATASETS.register("folder")
class Folder(FileDataset):
    """`images/SPLIT/**/X.jpg` with `labels/SPLIT/**/X.png`, described by `dataset.yaml`.

    Instead of folders a list `SPLIT.txt` may name the samples of a split, one a line, as paths below
    `images/` without extension. Any split name will do. Labels are gray or palette PNGs (or TIFFs) of stored
    values, or masks of the colours of `palette`. Upper and lower case of extensions are alike.

    Args:
        split: the name of the folders or of the list.
        root: the folder that holds `dataset.yaml`, `images` and `labels`.
        label_suffix: see `Description`, which it overrides.
        subset: leave out images without labels, and listed samples without files; of images that share a name
            take the first.

    Raises:
        DataError: the description is missing or wrong, a folder is missing, two images share a name, or files
            are missing.
    """

    splits: ClassVar[tuple[str, ...]] = ()
    stored_only = frozenset({"subset", "label_suffix"})
    colour_hint = "write `palette: [[R, G, B], ...]` in dataset.yaml, the colour of each class in the masks"
    hint = f"{DESCRIPTION}, images/SPLIT/ and labels/SPLIT/ (or images/, labels/ and SPLIT.txt)"

    def __init__(
        self, *, split: str, root: str | Path, label_suffix: str | None = None, subset: bool = False
    ) -> None:
        super().__init__(split=split, root=root, subset=subset)
        self.description = read_description(self.storage)
        self.classes, self.labels = self.description.class_set(), self.description.label_map()
        self.colours, self.span = self.description.colour_map(), self.description.range
        listed = f"{split}.txt" in self.storage.names("")
        prefix = "" if listed else f"{split}/"
        for folder in ("images", "labels"):
            self.find_folder(f"{folder}/{prefix}".rstrip("/"))
        images = _by_stem(_walk(self.storage, "images", prefix.rstrip("/")))
        self._extensions = {stem: paths[0].removeprefix(stem) for stem, paths in images.items()}
        suffix = self.description.label_suffix if label_suffix is None else label_suffix
        below = _walk(self.storage, "labels", prefix.rstrip("/"))
        stored = _by_stem([path for path in below if path.lower().endswith(_LABELS)])
        self._labels = {
            stem.removesuffix(suffix): paths[0] for stem, paths in stored.items() if stem.endswith(suffix)
        }
        self._suffix = suffix
        ids = sorted(images, key=_natural)
        if listed:
            lines = self.storage.read(f"{split}.txt").decode("utf-8", errors="replace").splitlines()
            ids = [line.strip() for line in lines if line.strip()]
        several = [images[stem] for stem in dict.fromkeys(ids) if len(images.get(stem, ())) > 1]
        self.duplicates = [" and ".join(f"images/{path}" for path in paths) for paths in several]
        doubled = [stored.get(f"{stem}{suffix}", []) for stem in dict.fromkeys(ids)]
        self.duplicates += [" and ".join(f"labels/{p}" for p in paths) for paths in doubled if len(paths) > 1]
        lone = [] if listed else [self._lone(stem) for stem in self._labels if stem not in images]
        if not images:
            held = self._held(f"images/{prefix}x")
            raise DataError(f"{self._of_split()}: no images that are read{held}; {_SAVE}")
        if not subset:
            self._refuse_unread([path for path in lone if not path.endswith(".*")], bool(ids))
        self.settle(ids)
        self.missing += lone if subset else []

    def _lone(self, stem: str) -> str:
        """What lies where the image of a label should, as it is named in messages."""
        folder, _, name = f"images/{stem}".rpartition("/")
        stems = ((other, *other.rpartition(".")[::2]) for other in self.storage.names(folder))
        there = [other for other, stem, end in stems if stem == name and end.lower() not in _NOTES]
        return f"{folder}/{there[0]} ({_UNREAD})" if there else f"{folder}/{name}.*"

    def _refuse_unread(self, paths: Sequence[str], others: bool) -> None:
        """Refuse images of formats that are not read, which would be left out."""
        if paths:
            count = f"{len(paths)} labelled images are" if len(paths) > 1 else "a labelled image is"
            how = " (to do without: --set data.subset=true)" if others else ""
            raise DataError(f"{self._of_split()}: {count} not read: {some(paths)}; {_SAVE}{how}")

    def all_images(self) -> list[str]:
        """Those in `images/`, whatever splits there are."""
        return sorted(f"images/{path}" for path in _walk(self.storage, "images", ""))

    def image_file(self, sample_id: str) -> str:
        """`images/train/tokyo/0001.jpg`."""
        return f"images/{sample_id}{self._extensions.get(sample_id, '.png')}"

    def label_file(self, sample_id: str) -> str:
        """`labels/train/tokyo/0001.png`."""
        return f"labels/{self._labels.get(sample_id, f'{sample_id}{self._suffix}.png')}"

    def how_to_place(self, folder: str) -> str:
        """Split names are settings, the names `images` and `labels` are not."""
        top, _, split = folder.partition("/")
        if split and self.storage.names(top):
            return (
                f";\nno split {split!r}: data.train_split and data.val_split (or `--split`) name the splits"
            )
        return f";\nno setting gives `{top}` another name: rename the folder, or link it (ln -s OTHER {top})"

    def how_to_pair(self, path: str, near: str) -> str:
        """The setting by which the label `near` is found, or why it cannot be one."""
        stem, _, extension = near.rpartition(".")
        if not path.startswith("labels/"):
            return "" if near.lower().endswith(EXTENSIONS) else f": {_UNREAD}; {_SAVE}"
        if f".{extension.lower()}" not in _LABELS:
            lossy = extension.lower() in ("jpg", "jpeg", "webp")
            why = "a lossy format changes label values" if lossy else "labels are PNG or TIFF files"
            return f": {why}; save labels as PNG files"
        wanted = path.rpartition("/")[2].removesuffix(".png").removesuffix(self._suffix)
        rest = stem[len(wanted) :]
        if not stem.startswith(wanted):
            return ": upper and lower case differ; rename the files"
        return f": set `label_suffix: {rest or chr(34) * 2}` in dataset.yaml"

    def palette_advice(self, usual: Used) -> str:
        """Declare the classes' colours, which then decide; if none of them do, the file is at fault."""
        if self.colours is not None:
            return "their colours are none of `palette`: mend it, or save the labels as gray class indices"
        table = {k: int(self.labels.table[k]) for k in usual if self.labels.possible[k]}
        found = {index: [*usual[k]] for k, index in reversed(table.items()) if index != IGNORE_LABEL}
        told = [found.get(k) for k in range(len(self.classes))]
        known = None not in told and len({str(colour) for colour in told}) == len(told)
        line = f"e.g. `palette: {told}`" if known else "`palette: [[R, G, B], ...]`"
        return (
            f"if colours decide, write {line} in {DESCRIPTION}, the colour of each class; "
            "if indices do, save the labels as gray class indices"
        )

    def advice(self, absent: Sequence[int]) -> str:
        """Give an ignored value to a class that never occurs."""
        given = self.description
        if len(absent) != 1 or given.ids is not None or len(given.ignored) != 1:
            return ""
        (value,), names = given.ignored, self.classes.names
        ids = {k: name for k, name in enumerate(names) if k not in absent}
        line = _ids_line({**ids, value: names[absent[0]]})
        return f"if {value} stands for {names[absent[0]]!r}, write `{line}`, `ignore: []` in {DESCRIPTION}"


def _ids_line(ids: Mapping[int, str]) -> str:
    """The line of `dataset.yaml`, in YAML's short form."""
    return yaml.safe_dump({"ids": dict(ids)}, default_flow_style=None, sort_keys=False, width=1000).strip()


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
        if name.startswith("."):  # such as the `._` files of a Mac
            continue
        if name.lower().endswith(EXTENSIONS):
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
