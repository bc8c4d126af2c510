"""What a split's images and labels have wrong as a whole, told from counts over its samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cirkd_ray.data.base import SegmentationDataset, spread
from cirkd_ray.data.codec import declare, shown
from cirkd_ray.data.files import FileDataset, SizeMismatch
from cirkd_ray.data.header import read_header
from cirkd_ray.data.palettes import Palettes, Used
from cirkd_ray.data.storage import LocalStorage
from cirkd_ray.data.tally import ORIENTED, Examined, Finding, Tally, counts_of
from cirkd_ray.errors import DataError

MOST_IGNORED = 0.4
"""The share of ignored pixels above which a split is suspicious."""
SAMPLES, LABELS, HEADERS, SECONDS = 4, 400, 2000, 5.0
"""What a start looks at: whole samples, label maps, pairs of headers, and how long at each of these two."""
COLOURED, PALETTES = 32, 16
"""Label maps in colours that it looks at in any case, and palettes that differ."""


FAR_BELOW = 15
"""An image whose highest value is so many times smaller than the measured range may be of another depth."""


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
    found = [*_of_pixels(data, tally), *_of_palettes(data, tally), *_of_facts(data, tally)]
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
    """Images whose pixels are not what the file holds."""
    total = sum(tally.sizes.values())
    looked = f"{total} images" if total == len(data) else f"{total} looked at"
    for text, (count, first) in tally.changes.items():
        images = f"{count} of the {looked} {'has' if count == 1 else 'have'}"
        if text == ORIENTED:
            how = "labels must fit the pixels as stored; turn the pixels and drop the tag to be sure"
            yield Finding("orientation", f"{images} {text} (first {first}); {how}")
        else:
            yield Finding("pixels changed", f"{images} {text} (first {first})")
    if data.measured and (tally.tops or tally.beyond):
        yield _of_range(data, tally, looked)


def _of_palettes(data: SegmentationDataset, tally: Tally) -> Iterator[Finding]:
    """Palette files that are read by index, though an index has several colours."""
    differing = tally.palettes.differing()
    if differing and isinstance(data, FileDataset):
        how = data.palette_advice(tally.palettes.usual)
        yield Finding("palettes differ", f"{differing}, and are read by index; {how}")


def _of_range(data: SegmentationDataset, tally: Tally, looked: str) -> Finding:
    """What the range says that was measured: a note where it fits all images."""
    span = data.span or (0.0, 255.0)
    wide = sum(count for count, _ in tally.tops.values())
    text = f"{wide} of the {looked} have values of more than 8 bits, scaled from {shown(span)}, as measured"
    if data.span is None:
        text = f"the {looked} have 8 bits"
    if tally.beyond:
        ranges, tops = zip(*tally.beyond.values(), strict=True)
        enough = min(span[0], *(low for low, _ in ranges)), max(span[1], *(high for _, high in ranges))
        first, top = next(iter(tally.beyond)), max(tops)
        left = f"{len(tally.beyond)} more have values up to {top:g} and are not read (first {first})"
        return Finding("range", f"{text}; {left}: write {declare(enough)}")
    small = {
        top: entry for top, entry in tally.tops.items() if (top - span[0]) * FAR_BELOW < span[1] - span[0]
    }
    if small:
        (_, first), count = next(iter(small.values())), sum(count for count, _ in small.values())
        odd = f"{count} have none above {max(small):g} (first {first}): are they of another depth?"
        return Finding("range", f"{text}; {odd} If it is right so, write {declare(span)}")
    sure = f"to be sure that further images are scaled alike, write {declare(span)}"
    return Finding("pixels scaled", f"{text}; {sure}", note=True)


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


def look(data: SegmentationDataset, *, training: bool, palettes: Palettes | None = None) -> tuple[str, ...]:
    """A look at a split before a run: what is cheap to know of all its files, and a few samples of it.

    Of a folder on this machine, the headers of up to `HEADERS` pairs are compared, and label maps are read
    until every class is met, at most `LABELS`. Of others only `SAMPLES` samples are read.

    Args:
        data: the split.
        training: whether it is trained on.
        palettes: those of the splits that were looked at before.

    Returns:
        What the user should know, a line each.

    Raises:
        DataError: a sample is bad, or no label of the training split is of a second class.
    """
    tally = Tally(data.classes.names, palettes=palettes or Palettes())
    storage = data.storage if isinstance(data, FileDataset) else None
    try:
        if isinstance(data, FileDataset) and isinstance(storage, LocalStorage):
            _compare_headers(data, storage, tally)
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
    found = data.examine(index) if isinstance(data, FileDataset) else Examined.of(data.load(index))
    tally.add_image(found)
    tally.add_label(found.counts)


def _look_on(data: FileDataset, tally: Tally, done: set[int]) -> None:
    """Read further label maps until every class is met, and some in colours at least, within the bounds."""
    give_up = time.monotonic() + SECONDS
    coloured = spread(len(data), COLOURED if data.colours is not None else 0)
    for number, index in enumerate(dict.fromkeys([*coloured, *spread(len(data), LABELS)])):
        met = sum(map(bool, tally.pixels)) + len(data.facts.never)
        if (met >= len(tally.classes) and number >= len(coloured)) or time.monotonic() > give_up:
            return
        if index not in done:
            tally.add_label(counts_of(data.load_label(index, None)))


def _compare_headers(data: FileDataset, storage: LocalStorage, tally: Tally) -> None:
    """Refuse pairs of different sizes; look into one label map of each palette."""
    if not data.has_labels:
        return
    give_up, bad = time.monotonic() + SECONDS, list[int]()
    palettes: dict[bytes, int] = {}
    for index in spread(len(data), HEADERS):
        if time.monotonic() > give_up:
            break
        image, label = (read_header(Path(storage.where(path))) for path in data.files(index))
        if image is not None and label is not None and image.size != label.size:
            bad.append(index)
        if label is not None and label.palette:
            palettes.setdefault(label.palette, index)
    for index in [*palettes.values()][:PALETTES] if len(palettes) > 1 else ():
        used: Used = {}
        data.load_label(index, None, used)
        tally.palettes.add(data.name(index), used)
    if bad:
        try:
            data.load(bad[0])
        except SizeMismatch as error:
            more = f" ({len(bad)} pairs like this)" if len(bad) > 1 else ""
            raise SizeMismatch(f"{error}{more}") from None
