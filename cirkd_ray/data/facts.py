"""What a split's images and labels have wrong as a whole, told from counts over its samples."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import SegmentationDataset, UInt8, spread
from cirkd_ray.data.files import FileDataset, SizeMismatch
from cirkd_ray.data.header import Header, read_header
from cirkd_ray.data.storage import LocalStorage, printable
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL

MOST_IGNORED = 0.4
"""The share of ignored pixels above which a split is suspicious."""
SAMPLES, LABELS, HEADERS, SECONDS = 4, 400, 2000, 5.0
"""What a start looks at: whole samples, label maps, pairs of headers, and how long at each of these two."""


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

    def add_label(self, counts: NDArray[np.int64]) -> None:
        """Count a label map by how often each of its 256 values occurs."""
        known = len(self.classes)
        if not len(self.pixels):
            self.pixels, self.seen = np.zeros(known, np.int64), np.zeros(known, np.int64)
        self.images += 1
        self.pixels += counts[:known]
        self.seen += counts[:known] > 0
        self.ignored += int(counts[IGNORE_LABEL])

    def add_image(
        self, name: str, size: tuple[int, int], changes: Iterable[str], header: Header | None
    ) -> None:
        """Count an image of `size` by what reading changed, and by its file's header where it is known."""
        self.sizes[size] += 1
        oriented = header is not None and header.orientation != 1
        self.turned += oriented
        for text in (*changes, *([ORIENTED] if oriented else [])):
            count, first = self.changes.get(text, (0, name))
            self.changes[text] = count + 1, first
        mode = header.mode if header is not None else "RGB"
        if mode != "RGB":
            self.formats[mode] += 1

    @property
    def ignored_share(self) -> float:
        """Ignored pixels among all."""
        return self.ignored / max(1, int(self.pixels.sum()) + self.ignored)


SCALED = ", scaled "
"""In what reading changed: values of more than 8 bits were scaled by what the image uses."""
ORIENTED = "an orientation tag, which is never applied"


def judge(
    data: SegmentationDataset, tally: Tally, *, training: bool, most_ignored: float = MOST_IGNORED
) -> list[Finding]:
    """What is suspicious about samples of a split; about its classes only where the whole split was counted.

    Args:
        data: the split.
        tally: the counts.
        training: whether it is trained on, so that every class must occur.
        most_ignored: the share of ignored pixels that is allowed.
    """
    found = list(_of_pixels(data, tally)) + list(_of_facts(data, tally))
    if not tally.images or not getattr(data, "has_labels", True):
        return found
    whole, advice = tally.images == len(data), ""
    absent = [k for k, count in enumerate(tally.pixels) if not count and k not in data.facts.never]
    looked = f"all {len(data)} images" if whole else f"the {tally.images} of {len(data)} images looked at"
    problems: list[tuple[str, str]] = []
    present = [name for name, count in zip(tally.classes, tally.pixels, strict=True) if count]
    if training and whole and absent:
        names = ", ".join(repr(tally.classes[k]) for k in absent[:5]) + (", ..." if len(absent) > 5 else "")
        some = f"{len(absent)} of the {len(tally.classes)} classes: " if len(absent) > 1 else "class "
        problems.append(("class never occurs", f"no label in {looked} is of {some}{names}"))
    if len(present) <= 1 < len(tally.classes):
        only = f"of one class only, {present[0]!r}" if present else "of no class at all"
        problems.append(("one class", f"the labels in {looked} are {only}"))
    if tally.ignored_share > most_ignored:
        share = f"{100 * tally.ignored_share:.0f} % of the pixels in {looked} are ignored"
        problems.append(("ignored pixels", f"{share}, more than {100 * most_ignored:.0f} %"))
    if problems:
        advice = _advice(data, tally, absent)
    return found + [
        Finding(kind, text + (advice if k == 0 else "")) for k, (kind, text) in enumerate(problems)
    ]


def _advice(data: SegmentationDataset, tally: Tally, absent: Sequence[int]) -> str:
    """What to do about classes that do not occur, where the data set can tell."""
    line = data.advice(absent) if isinstance(data, FileDataset) and tally.ignored else ""
    return f"; {line}" if line else _must_be(data)


def _must_be(data: SegmentationDataset) -> str:
    return f"; the labels must be {data.facts.labels}" if data.facts.labels else ""


def _of_pixels(data: SegmentationDataset, tally: Tally) -> Iterator[Finding]:
    """Images whose pixels are not what the file holds.

    Values of more than 8 bits that were scaled, all images alike, are a note: that is the rule of reading.
    """
    total = sum(tally.sizes.values())
    looked = f"{total} images" if total == len(data) else f"{total} looked at"
    scales = [text for text in tally.changes if SCALED in text]
    for text, (count, first) in tally.changes.items():
        images = f"{count} of the {looked} {'has' if count == 1 else 'have'}"
        if text == ORIENTED:
            how = "labels must fit the pixels as stored; turn the pixels and drop the tag to be sure"
            yield Finding("orientation", f"{images} {text} (first {first}); {how}")
        else:
            used = re.search(r"0\.\.(\d+)", text) if text in scales and hasattr(data, "description") else None
            alike = text in scales and len(scales) == 1
            line = f"write `range: [0, {used[1]}]` in dataset.yaml" if used else ""
            why = "to be sure that further images are scaled alike" if alike else "to scale all alike"
            how = f"; {why}, {line}" if line else ""
            message = f"{images} {text} (first {first}){how}"
            yield Finding("pixels scaled" if alike else "pixels changed", message, note=alike)


def _of_facts(data: SegmentationDataset, tally: Tally) -> Iterator[Finding]:
    """Labels, sizes and counts that the data set does not have."""
    facts = data.facts
    odd = [k for k in sorted(facts.never) if k < len(tally.pixels) and tally.pixels[k]]
    if odd:
        shown = ", ".join(f"{k} {tally.classes[k]}" for k in odd[:4]) + (", ..." if len(odd) > 4 else "")
        what = f"ids that never occur in the official label maps do occur ({shown})"
        how = ": the labels look shifted by one, or of another numbering"
        yield Finding("impossible class", f"{what}{how}{_must_be(data)}")
    labelled = max(1, int(tally.pixels.sum()))
    for k, least in facts.least.items() if tally.images >= SAMPLES else ():
        if k < len(tally.pixels) and (share := tally.pixels[k] / labelled) < least:
            what = f"only {100 * share:.1f} % of the labelled pixels are {tally.classes[k]!r}, a common class"
            yield Finding("rare class", f"{what}: are the labels of another order?{_must_be(data)}")
    if facts.size is not None and (others := [size for size in tally.sizes if size != facts.size]):
        count = sum(tally.sizes[size] for size in others)
        (height, width), (right, wide) = others[0], facts.size
        what = f"{count} images are not of {wide}x{right} pixels as the official ones, e.g. {width}x{height}"
        yield Finding("size", what)
    split = getattr(data, "split", "")
    expected, missing = facts.counts.get(split), getattr(data, "missing", ())
    if expected is not None and not missing and len(data) != expected:
        yield Finding("count", f"the split {split!r} holds {len(data)} images, the official one {expected}")


def look(data: SegmentationDataset, *, training: bool) -> tuple[str, ...]:
    """A look at a split before a run: what is cheap to know of all its files, and a few samples of it.

    Of a folder on this machine, the headers of up to `HEADERS` pairs are compared, and label maps are read
    until every class is met, at most `LABELS`. Of others only `SAMPLES` samples are read.

    Returns:
        What the user should know, a line each.

    Raises:
        DataError: a sample is bad, or no label of the training split is of a second class.
    """
    tally = Tally(data.classes.names)
    storage = data.storage if isinstance(data, FileDataset) else None
    try:
        if isinstance(data, FileDataset) and isinstance(storage, LocalStorage):
            _compare_headers(data, storage)
        chosen = spread(len(data), SAMPLES)
        for index in chosen:
            _read(data, index, tally)
        if isinstance(data, FileDataset) and isinstance(storage, LocalStorage) and data.has_labels:
            _look_on(data, tally, set(chosen))
    except DataError as error:
        raise data.explained(error) from None
    found = judge(data, tally, training=training) if data.needs_root else []
    alone = any(finding.kind == "one class" for finding in found)
    if alone and training and (tally.images == len(data) or tally.ignored_share > MOST_IGNORED):
        raise DataError(f"data: {'; '.join(finding.message for finding in found[-3:] if not finding.note)}")
    split = getattr(data, "split", "")
    return tuple(f"{'note' if item.note else 'warning'}: data, {split}: {item.message}" for item in found)


def _read(data: SegmentationDataset, index: int, tally: Tally) -> None:
    """Count one sample."""
    if isinstance(data, FileDataset):
        sample, changes, header = data.examine(index)
        tally.add_image(sample.name, sample.size, changes, header)
    else:
        sample = data.load(index)
        tally.add_image(sample.name, sample.size, (), None)
    tally.add_label(counts_of(sample.label))


def counts_of(label: UInt8) -> NDArray[np.int64]:
    """How often each of the 256 values occurs."""
    return np.bincount(label.ravel(), minlength=256)


def _look_on(data: FileDataset, tally: Tally, done: set[int]) -> None:
    """Read further label maps until every class is met, within the bounds."""
    give_up = time.monotonic() + SECONDS
    for index in spread(len(data), LABELS):
        met = sum(map(bool, tally.pixels)) + len(data.facts.never)
        if met >= len(tally.classes) or time.monotonic() > give_up:
            return
        if index not in done:
            tally.add_label(counts_of(data.load_label(index, None)))


def _compare_headers(data: FileDataset, storage: LocalStorage) -> None:
    """Refuse pairs of different sizes."""
    if not data.has_labels:
        return
    give_up, bad = time.monotonic() + SECONDS, []
    for index in spread(len(data), HEADERS):
        if time.monotonic() > give_up:
            break
        image, label = (read_header(Path(storage.where(path))) for path in data.files(index))
        if image is not None and label is not None and image.size != label.size:
            bad.append(index)
    if bad:
        try:
            data.load(bad[0])
        except SizeMismatch as error:
            more = f" ({len(bad)} pairs like this)" if len(bad) > 1 else ""
            raise SizeMismatch(f"{error}{more}") from None
