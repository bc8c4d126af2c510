"""What a data set is: classes, and numbered pairs of an RGB image and a map of class indices.

To add one, add a file to this folder with a class under `@DATASETS.register(NAME)`; nothing else is edited.
See `ade20k.py` for one of files (a `FileDataset`), and `folder.py`, which reads your own data without code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.config import registry
from cirkd_ray.errors import DataError, TransientError, UserError
from cirkd_ray.types import ClassSet

UInt8 = NDArray[np.uint8]
Stamp = Sequence[int | str | None]
"""What tells a changed file from an unchanged one: its bytes and its time of change (ns), or a checksum."""


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        image: H x W x 3 uint8, RGB.
        label: H x W uint8, class index or `IGNORE_LABEL` (255).
        name: a short, unique name, such as the path below the root.
    """

    image: UInt8
    label: UInt8
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]

    def image_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """See `Readable`."""
        return self.image[top:bottom, left:right]

    def label_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """See `Readable`."""
        return self.label[top:bottom, left:right]


class Readable(Protocol):
    """What a transform needs of a sample, so that a stored form decodes only the windows asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""

    def image_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """The image's rows top..bottom-1 and columns left..right-1."""

    def label_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """The same window of the labels."""


@dataclass(frozen=True)
class Facts:
    """What is known of a data set beforehand, by which labels of another numbering or another set are told.

    Attributes:
        never: class indices that no label map of the set holds.
        size: (height, width) of every image.
        counts: how many images a split has.
        least: class index -> the least share of labelled pixels that it has in any few images.
        labels: which files the labels are, to end "the labels must be ...".
    """

    never: frozenset[int] = frozenset()
    size: tuple[int, int] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[int, float] = field(default_factory=dict)
    labels: str = ""


class SegmentationDataset(ABC):
    """One split of a data set.

    A subclass takes `split` and `root` as required keyword arguments, followed by its own settings
    (keyword-only, annotated, with defaults). It finds its files when built, so that a wrong root, a missing
    file or an empty split is a `DataError` before training starts.

    Attributes:
        classes: names and palette.
        place: the root in full; None where there is none.
        splits: the names of the splits; empty where the data decide.
        needs_root: false for a set that is drawn rather than read.
        default_crop: (height, width) of the published recipes.
        facts: what is known of the set's files, see `cirkd_ray.data.facts`.
        span: the range of image values of more than 8 bits, see `decode_image`.
        measured: whether the span was measured, and not declared; None then says that the images have 8 bits.
        check_command: the command that finds all bad files, where the data set was built by its name.
    """

    classes: ClassSet
    place: str | None = None
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    needs_root: ClassVar[bool] = True
    default_crop: ClassVar[tuple[int, int]] = (512, 512)
    facts: Facts = Facts()
    span: tuple[float, float] | None = None
    measured: bool = False
    check_command: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Read image `index`.

        Raises:
            DataError: the image or label is unreadable, of another size, or holds an impossible value; the
                file is named.
        """

    def open(self, index: int) -> Readable:
        """Sample `index`, to read windows of it; a form that can decode parts of a file does so here."""
        return self.load(index)

    @abstractmethod
    def name(self, index: int) -> str:
        """The sample's name, without reading it."""

    def label_values(self) -> Mapping[str, str]:
        """Stored label value or colour -> name of its class, or "ignored"; empty where none are stored."""
        return {}

    def stamps(self) -> Mapping[str, Stamp]:
        """What the samples are made of, without reading any: file -> its stamp. By default names alone."""
        return {self.name(index): () for index in range(len(self))}

    def contents(self, stamps: Mapping[str, Stamp]) -> Mapping[str, str]:
        """File -> digest of its content, for a few of the files; always the same ones. By default none."""
        return {}

    def away(self, index: int) -> str | None:
        """The folder that is away with its disk, so that sample `index` cannot be read now, or None."""
        return None

    def explained(self, error: UserError, indices: Sequence[int] = ()) -> UserError:
        """An error of reading one of some samples, with the command that finds all bad files.

        Returns:
            A `TransientError` where the samples' storage is away.
        """
        folder = next(filter(None, map(self.away, indices)), None)
        if folder is not None and isinstance(error, DataError):
            return TransientError(f"data.root: {folder} is gone or empty (is its disk mounted?)")
        passing = isinstance(error, TransientError) or not isinstance(error, DataError)
        if passing or not self.check_command or self.check_command in str(error):
            return error
        end = " " if "\n" in str(error) else "\n"
        return type(error)(f"{error}{end}(`{self.check_command}` finds all bad files)")


def spread(length: int, count: int) -> list[int]:
    """Up to `count` numbers below `length`, from the first to the last."""
    return sorted({round(k * (length - 1) / max(1, count - 1)) for k in range(count)}) if length else []


DATASETS: registry.Registry[SegmentationDataset] = registry.DATASETS
