"""What the samples of a split tell, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import Sample, UInt8
from cirkd_ray.data.header import Header
from cirkd_ray.data.palettes import Palettes, Used
from cirkd_ray.data.storage import printable
from cirkd_ray.types import IGNORE_LABEL

ORIENTED = "an orientation tag, which is never applied"
K = TypeVar("K")


class Examined(NamedTuple):
    """What one sample and its files tell, without the pixels.

    Attributes:
        name: the sample's.
        size: (height, width).
        counts: how often each of the 256 label values occurs.
        header: of the image's file.
        changes: what reading changed in the image.
        top: the highest stored value of an image of more than 8 bits.
        used: the colours of the used indices of a palette file that is read by index.
    """

    name: str
    size: tuple[int, int]
    counts: NDArray[np.int64]
    header: Header | None = None
    changes: tuple[str, ...] = ()
    top: float | None = None
    used: Used = {}  # noqa: RUF012 - never changed

    @classmethod
    def of(cls, sample: Sample, *facts: Any) -> Examined:
        """Of a sample, and facts about its files in the order of the attributes."""
        return cls(sample.name, sample.size, counts_of(sample.label), *facts)


def counts_of(label: UInt8) -> NDArray[np.int64]:
    """How often each of the 256 values occurs."""
    return np.bincount(label.ravel(), minlength=256)


@dataclass(frozen=True)
class Finding:
    """Something wrong with one file, or with a split.

    Attributes:
        kind: what it is about, in two or three words.
        message: names the file or split and the reason; where names are no UTF-8, with escapes.
        note: it is as it should be, and good to know.
    """

    kind: str
    message: str
    note: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))


@dataclass
class Tally:
    """Counts over the samples of a split that were read and are right.

    Attributes:
        classes: names of the classes.
        images: how many samples.
        pixels: labelled pixels of each class.
        seen: samples in which each class occurs.
        ignored: ignored pixels.
        sizes: how many samples have each (height, width).
        formats: how many images are of each kind that is not plain 8-bit RGB (they are converted when read).
        turned: images with a camera's orientation tag, which is not applied.
        changes: what reading changed in images -> how many, and the first one's name.
        tops: highest value of each image of more than 8 bits -> how many, and the first one's name.
        palettes: the colours of palette files that are read by index; several splits may share them.
        beyond: images that the measured range leaves out -> the range that holds them, and the highest value.
    """

    classes: tuple[str, ...]
    images: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    changes: dict[str, tuple[int, str]] = field(default_factory=dict)
    tops: dict[float, tuple[int, str]] = field(default_factory=dict)
    palettes: Palettes = field(default_factory=Palettes)
    beyond: dict[str, tuple[tuple[float, float], float]] = field(default_factory=dict)

    def add_label(self, counts: NDArray[np.int64]) -> None:
        """Count a label map by how often each of its 256 values occurs."""
        known = len(self.classes)
        if not len(self.pixels):
            self.pixels, self.seen = np.zeros(known, np.int64), np.zeros(known, np.int64)
        self.images += 1
        self.pixels += counts[:known]
        self.seen += counts[:known] > 0
        self.ignored += int(counts[IGNORE_LABEL])

    def add_image(self, found: Examined) -> None:
        """Count a sample's image by what its file tells and what reading changed."""
        header = found.header
        self.sizes[found.size] += 1
        oriented = header is not None and header.orientation != 1
        self.turned += oriented
        for text in (*found.changes, *([ORIENTED] if oriented else [])):
            _count(self.changes, text, found.name)
        self.palettes.add(found.name, found.used)
        if found.top is not None:
            _count(self.tops, found.top, found.name)
        mode = header.mode if header is not None else "RGB"
        if mode != "RGB":
            self.formats[mode] += 1

    @property
    def ignored_share(self) -> float:
        """Ignored pixels among all."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)


def _count(counts: dict[K, tuple[int, str]], key: K, name: str) -> None:
    count, first = counts.get(key, (0, name))
    counts[key] = count + 1, first
