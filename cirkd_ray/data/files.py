"""What the file-based data sets share: reading a pair, mapping its label values, checking both."""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.codec import decode_image, decode_label
from cirkd_ray.data.storage import Storage, open_storage
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL, ClassSet

IMPOSSIBLE = -1
"""Entry of an id map for stored values that must not occur."""


class SizeMismatch(DataError):
    """A label map is not of its image's size."""


class ImpossibleLabels(DataError):
    """A label map holds values that the data set does not have."""


class LabelMap:
    """Stored label value -> class index, by a table of 256 entries.

    Args:
        mapping: stored value -> class index or `IGNORE_LABEL`; every other value is impossible.
    """

    def __init__(self, mapping: Mapping[int, int]) -> None:
        table = np.full(256, IMPOSSIBLE, dtype=np.int16)
        for value, index in mapping.items():
            table[value] = index
        self.table = table.astype(np.uint8)
        self.identity = bool((self.table[table >= 0] == np.arange(256)[table >= 0]).all())
        self.possible = table >= 0
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ~self.possible, [False]]).astype(np.int8)))
        self._impossible = [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]

    def __call__(self, stored: UInt8, where: str) -> UInt8:
        """H x W class indices.

        Raises:
            DataError: a value that must not occur; the message says which and how many.
        """
        for low, high in self._impossible:
            if cv2.countNonZero(cv2.inRange(stored, low, high)):
                raise ImpossibleLabels(f"{where}: {self._complaint(stored)}")
        return stored if self.identity else cv2.LUT(stored, self.table)

    @property
    def digest(self) -> str:
        """A name for the table: equal where the same stored values mean the same."""
        return hashlib.sha256(self.table.tobytes() + self.possible.tobytes()).hexdigest()[:16]

    def _complaint(self, stored: UInt8) -> str:
        counts = np.bincount(stored.ravel(), minlength=256)
        wrong = np.flatnonzero((counts > 0) & ~self.possible)
        shown = _some([f"{value} ({counts[value]} pixels)" for value in wrong], 4)
        allowed = _ranges(np.flatnonzero(self.possible).tolist())
        return f"impossible label values {shown}; this data set has {allowed}"


def _ranges(values: Sequence[int]) -> str:
    """`0-20, 255` for 0, 1, ..., 20, 255."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


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
        has_labels: false for a test split without public labels; its label maps are all ignored.
        hint: the expected layout in a few words, for the message about a wrong root.
    """

    hint: ClassVar[str] = ""
    paths: tuple[str, str]
    labels: LabelMap
    has_labels: bool = True

    def __init__(self, *, split: str, root: str | Path, subset: bool = False) -> None:
        self.split = split
        self.subset = subset
        self.storage: Storage = open_storage(root)
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
        for path in self._paths(self.ids[index]):
            stamp = self.storage.stamp(path)
            if stamp is None:
                return None
            numbers += stamp
        return numbers

    def load(self, index: int) -> Sample:
        """Read and check one pair."""
        path = self.image_file(self.ids[index])
        image = decode_image(self.storage.read(path), self.storage.where(path))
        return Sample(image, self.load_label(index, image.shape[:2]), path)

    def load_label(self, index: int, size: tuple[int, ...]) -> UInt8:
        """Read the label map that belongs to an image of `size` (height, width)."""
        if not self.has_labels:
            return np.full(size, IGNORE_LABEL, np.uint8)
        path = self.label_file(self.ids[index])
        where = self.storage.where(path)
        stored = decode_label(self.storage.read(path), where)
        if stored.shape != size:
            raise SizeMismatch(
                f"{where}: the label is {stored.shape[1]}x{stored.shape[0]} pixels, its image "
                f"{self.image_file(self.ids[index])} {size[1]}x{size[0]}"
            )
        return self.labels(stored, where)

    def find_folder(self, *candidates: str) -> str:
        """The first of these folders that holds anything.

        Raises:
            DataError: none does; the message says what the data set expects.
        """
        for folder in candidates:
            if self.storage.names(folder):
                return folder
        where = self.storage.where(candidates[0])
        raise DataError(f"{where}: no such folder, or it is empty; expected below data.root: {self.hint}")

    def settle(self, ids: Iterable[str]) -> None:
        """Take `ids` as the split, after a look into the folders for their files.

        Raises:
            DataError: the split is empty, a name comes twice, or files are missing (`subset` allows both);
                the first ones are named and all are counted.
        """
        wanted, folders = Counter(ids), functools.cache(lambda folder: frozenset(self.storage.names(folder)))
        self.duplicates += [f"{name} (listed {count} times)" for name, count in wanted.items() if count > 1]
        if self.duplicates and not self.subset:
            raise DataError(
                f"{self._of_split()}: {_counted(len(self.duplicates), 'name comes', 'names come')} twice: "
                f"{_some(self.duplicates)} (to take the first of each: --set data.subset=true)"
            )
        for sample_id in wanted:
            parts = [path.rpartition("/") for path in self._paths(sample_id)]
            lacking = ["".join(part) for part in parts if part[2] not in folders(part[0])]
            self.missing += lacking
            if not lacking:
                self.ids.append(sample_id)
        if self.missing and not self.subset:
            raise DataError(
                f"{self._of_split()}: {_counted(len(self.missing), 'file is', 'files are')} missing: "
                f"{_some(self.missing)} (to use what is there: --set data.subset=true)"
            )
        if not self.ids:
            raise DataError(f"{self._of_split()}: no images; expected {self.hint}")

    def _paths(self, sample_id: str) -> list[str]:
        """The sample's files, image first."""
        return [self.image_file(sample_id)] + ([self.label_file(sample_id)] if self.has_labels else [])

    def _of_split(self) -> str:
        return f"{self.storage.where('')}, split {self.split!r}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
