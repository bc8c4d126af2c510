"""What the file-based data sets share: reading a pair, mapping its label values, checking both."""

from __future__ import annotations

import functools
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cirkd_ray.data.base import Sample, SegmentationDataset, Stamp, UInt8, spread
from cirkd_ray.data.codec import Decoded, read_image
from cirkd_ray.data.header import Header, read_header
from cirkd_ray.data.label_map import ColourMap, LabelMap, some
from cirkd_ray.data.masks import ColourLabels, colour_table, decode_mask
from cirkd_ray.data.palettes import Used, meant_by_colours, used_colours
from cirkd_ray.data.scale import measured_range
from cirkd_ray.data.storage import Storage, open_storage
from cirkd_ray.data.tally import Examined
from cirkd_ray.errors import DataError
from cirkd_ray.files import stays_inside
from cirkd_ray.types import IGNORE_LABEL, ClassSet

COMPARED = 16
"""Samples whose contents tell a data set from another one of the same names and sizes."""
_READERS = 8


class SizeMismatch(DataError):
    """A label map is not of its image's size.

    Args:
        text: the message.
        label: (height, width) of the label map.
    """

    def __init__(self, text: str, label: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.label = label


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    """The packaged facts about the data set `name`: class names, colours, stored values, counts."""
    text = (resources.files("cirkd_ray.data") / "meta" / f"{name}.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def class_set(name: str) -> ClassSet:
    """Names and palette of the packaged data set `name`."""
    rows = metadata(name)["classes"]
    return ClassSet(tuple(row[0] for row in rows), tuple((row[1], row[2], row[3]) for row in rows))


def packaged_list(name: str, split: str) -> list[str]:
    """The ids of a split of the packaged data set `name`."""
    packed = (resources.files("cirkd_ray.data") / "meta" / "lists" / f"{name}_{split}.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8").split()


class FileDataset(SegmentationDataset):
    """A split whose images and labels are files.

    A subclass finds the ids, calls `settle` with them, and says in `paths` where a sample's files lie (or
    overrides `image_file` and `label_file`).

    Attributes:
        storage: the root.
        ids: the samples' ids in order.
        missing: paths below the root of the split's files that are not there (only with `subset`).
        duplicates: what comes twice under one name (only with `subset`, which takes the first).
        paths: of image and label map below the root, with {} for the sample's id.
        labels: the map from stored values to class indices.
        colours: the map from colours, where masks of colours are understood.
        colour_hint: what to do where they are not, for the message about such a mask.
        has_labels: false for a test split without public labels; its label maps are all ignored.
        hint: the expected layout in a few words, for the message about a wrong root.
        stored_only: settings that say how files are stored, and not what labels mean.
    """

    hint: ClassVar[str] = ""
    stored_only: ClassVar[frozenset[str]] = frozenset({"subset"})
    paths: tuple[str, str]
    labels: LabelMap
    colours: ColourMap | None = None
    colour_hint: str = "labels must be gray or palette PNGs of class indices"
    has_labels: bool = True

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        self.split = split
        self.subset = subset
        self.storage: Storage = open_storage(root)
        self.place = self.storage.place
        self.ids: list[str] = []
        self.missing: list[str] = []
        self.duplicates: list[str] = []

    def image_file(self, sample_id: str) -> str:
        """Path of the image below the root."""
        return self.paths[0].format(sample_id)

    def label_file(self, sample_id: str) -> str:
        """Path of the label map below the root."""
        return self.paths[1].format(sample_id)

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        """The image's path below the root."""
        return self.image_file(self.ids[index])

    def source_stamp(self, index: int) -> list[int] | None:
        """Bytes and times of change of the sample's files, image first; None where one is gone or unknown."""
        numbers: list[int] = []
        for path in self.files(index):
            stamp = self.storage.stamp(path)
            if stamp is None:
                return None
            numbers += stamp
        return numbers

    def stamps(self) -> dict[str, Stamp]:
        """Bytes of every file of the split and, on this machine, its time of change; a listing a folder."""
        folders = functools.cache(self.storage.stamps)
        parts = (path.rpartition("/") for sample_id in self.ids for path in self._paths(sample_id))
        return {"".join(part): folders(part[0]).get(part[2], ()) for part in parts}

    def contents(self, stamps: Mapping[str, Stamp]) -> dict[str, str]:
        """Of the images and labels of `COMPARED` samples."""
        paths = [path for index in spread(len(self), COMPARED) for path in self.files(index)]
        sizes = [stamps[path][0] if stamps[path] else None for path in paths]
        with ThreadPoolExecutor(_READERS) as pool:  # a request for each behind a URL
            digests = pool.map(self.storage.digest, paths, sizes)
            return {path: digest for path, digest in zip(paths, digests, strict=True) if digest}

    def label_values(self) -> dict[str, str]:
        """By the maps of stored values and of colours."""
        names = self.classes.names
        return self.labels.named(names) | ({} if self.colours is None else self.colours.named(names))

    def away(self, index: int) -> str | None:
        """By the folders of its files."""
        return self.storage.away(*self.files(index))

    def load(self, index: int) -> Sample:
        """Read and check one pair."""
        return self._pair(index)[0]

    def examine(self, index: int) -> Examined:
        """A pair, and what its files tell beside it."""
        used: Used = {}
        sample, image, content = self._pair(index, used)
        header = read_header(content) or Header(sample.size, "not known to Pillow")
        return Examined.of(sample, header, image.changes, image.top, used)

    def _pair(self, index: int, used: Used | None = None) -> tuple[Sample, Decoded, bytes]:
        path = self.image_file(self.ids[index])
        content = self.storage.read(path)
        image = read_image(content, self.storage.where(path), self.span, self.measured)
        try:
            label = self.load_label(index, image.pixels.shape[:2], used)
        except SizeMismatch as error:
            raise SizeMismatch(f"{error}{_turned(content, error.label)}") from None
        return Sample(image.pixels, label, path), image, content

    def load_label(self, index: int, size: tuple[int, ...] | None, used: Used | None = None) -> UInt8:
        """Read the label map that belongs to an image of `size` (height, width), or of any where None.

        Args:
            index: the sample's.
            size: of its image.
            used: takes the colours of the used indices of a palette file that is read by index.
        """
        if not self.has_labels and size is not None:
            return np.full(size, IGNORE_LABEL, np.uint8)
        path = self.label_file(self.ids[index])
        where = self.storage.where(path)
        content = self.storage.read(path)
        stored = decode_mask(content, where)
        if size is not None and stored.shape[:2] != size:
            raise SizeMismatch(
                f"{where}: the label is {_by(stored.shape)} pixels, its image "
                f"{self.image_file(self.ids[index])} {_by(size)}",
                stored.shape[:2],
            )
        if stored.ndim == 2:
            table = None if self.colours is None and used is None else colour_table(content)
            if table is not None and self.colours is not None:
                by_index = meant_by_colours(stored, table, self.labels, self.colours, where)
                if by_index is not None:
                    return np.asarray(by_index[stored], np.uint8)
            if table is not None and used is not None:
                used |= used_colours(stored, table)
            return self.labels(stored, where)
        if self.colours is None:
            raise ColourLabels(f"{where}: holds RGB values; {self.colour_hint}")
        return self.colours(stored, where)

    def find_folder(self, *candidates: str) -> str:
        """The first of these folders that holds anything.

        Raises:
            DataError: none does; the message says what the data set expects.
        """
        for folder in candidates:
            if self.storage.names(folder):
                return folder
        where = self.storage.where(candidates[0])
        raise DataError(
            f"{where}: no such folder, or it is empty{self._held(candidates[0])}; "
            f"expected below data.root: {self.hint}{self.how_to_place(candidates[0])}"
        )

    def how_to_place(self, folder: str) -> str:
        """A line with what to do about a missing folder, where the data set can tell."""
        return ""

    def _held(self, folder: str) -> str:
        """What lies in the nearest folder above `folder` that holds anything."""
        above = folder
        while above:
            above = above.rpartition("/")[0]
            if names := self.storage.names(above):
                return f" ({above or 'the root'} holds {some(names)})"
        return ""

    def settle(self, ids: Iterable[str]) -> None:
        """Take `ids` as the split, after a look into the folders for their files.

        Raises:
            DataError: the split is empty, a name leads out of the root; or a name comes twice, or files are
                missing (`subset` allows both): the first ones are named and all are counted.
        """
        wanted, folders = Counter(ids), functools.cache(lambda folder: frozenset(self.storage.names(folder)))
        if outside := [name for name in wanted if not stays_inside(self.image_file(name))]:
            raise DataError(f"{self._of_split()}: unsafe, {outside[0]!r} leads out of the folder")
        self.duplicates += [f"{name} (listed {count} times)" for name, count in wanted.items() if count > 1]
        if self.duplicates and not self.subset:
            raise DataError(
                f"{self._of_split()}: {_counted(len(self.duplicates), 'name comes', 'names come')} twice: "
                f"{some(self.duplicates)} (to take the first of each: --set data.subset=true)"
            )
        for sample_id in wanted:
            parts = [path.rpartition("/") for path in self._paths(sample_id)]
            lacking = ["".join(part) for part in parts if part[2] not in folders(part[0])]
            self.missing += lacking
            if not lacking:
                self.ids.append(sample_id)
        if self.missing and not (self.subset and self.ids):
            instead = self._instead(self.missing, folders)
            use = "" if instead or self.subset else " (to use what is there: --set data.subset=true)"
            none = "" if self.ids else "no images with labels: "
            raise DataError(
                f"{self._of_split()}: {none}{_counted(len(self.missing), 'file is', 'files are')} missing: "
                f"{some(self.missing)}{use}{instead}"
            )
        if not self.ids:
            raise DataError(f"{self._of_split()}: no images; expected {self.hint}")
        if self.span is None:
            self.span = measured_range(self.storage, [*map(self.image_file, self.ids)], self.all_images)
            self.measured = True

    def all_images(self) -> Sequence[str]:
        """Paths of the images of all splits, as far as these are known."""
        return [*map(self.image_file, self.ids)]

    def _instead(self, missing: Sequence[str], folders: Callable[[str], Iterable[str]]) -> str:
        """What lies beside missing files and looks as if it were meant, and what to do about it."""
        for path in missing:
            folder, _, name = path.rpartition("/")
            stem = name.rpartition(".")[0].lower()
            near = [other for other in sorted(folders(folder)) if other.lower().startswith(stem)]
            if near:
                return f";\n{path} is missing; {folder} holds {near[0]}{self.how_to_pair(path, near[0])}"
        for path in missing if not self.ids else ():
            folder = path.rpartition("/")[0]
            if held := sorted(folders(folder)):
                alike = "the names of images and labels must be alike"
                return f";\n{path} is missing; {folder} holds {some(held)}: {alike}"
        return ""

    def how_to_pair(self, path: str, near: str) -> str:
        """What to do where `near` lies in the folder of the missing file `path`, as the end of a sentence."""
        return ""

    def palette_advice(self, usual: Used) -> str:
        """What to do where label files have palettes that differ, given the usual colour of each index."""
        return "save the labels as gray class indices"

    def advice(self, absent: Sequence[int]) -> str:
        """The line to write where these classes do not occur and pixels are ignored; empty if unknown."""
        return ""

    @property
    def ignored_colours(self) -> list[list[int]] | None:
        """The colours of masks that do not count; None where there are none."""
        mapping = {} if self.colours is None else self.colours.mapping
        return [list(c) for c in sorted(mapping) if mapping[c] == IGNORE_LABEL] or None

    def files(self, index: int) -> list[str]:
        """The sample's files below the root, image first."""
        return self._paths(self.ids[index])

    def _paths(self, sample_id: str) -> list[str]:
        """The sample's files, image first."""
        return [self.image_file(sample_id)] + ([self.label_file(sample_id)] if self.has_labels else [])

    def _of_split(self) -> str:
        return f"{self.storage.where('')}, split {self.split!r}"


def _by(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _turned(image: bytes, label: tuple[int, ...]) -> str:
    """What to add where a label would fit if the image's orientation tag were applied."""
    header = read_header(image)
    if header is None or header.orientation == 1 or header.upright_size != label:
        return ""
    return (
        ", and the other way round as its orientation tag says;\nthe tag is never applied: turn the pixels "
        "and drop the tag (exiftran -ai), or label the pixels as stored"
    )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
