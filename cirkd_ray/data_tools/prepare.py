"""Conversion of a data set into its prepared form, in parts that outlive an interruption."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.prepared import (
    FORMAT,
    MANIFEST,
    PLAN,
    Manifest,
    PreparedDataset,
    Row,
    find_manifest,
    index_part,
    read_part,
)
from cirkd_ray.data.storage import Storage, open_storage, printable
from cirkd_ray.data.tiles import encode_sample
from cirkd_ray.errors import DataError, TransientError

_MEANING = {
    "classes": "of other classes, or of the same in another order",
    "palette": "with other colours of the classes",
    "labels": "in which label values stand for other classes",
    "colours": "in which other colours are ignored",
    "range": "of images scaled from another range",
}
_PART = 64
_WHOLE_PIXELS = 1_000_000


@dataclass(frozen=True)
class Encoding:
    """How samples are stored.

    Attributes:
        quality: of JPEG tiles; None stores PNG tiles (lossless, larger, slower to read).
        tile: side of a tile in pixels.
        max_size: longest side; larger samples are scaled down (images by area, labels by nearest neighbour).
    """

    quality: int | None = 95
    tile: int = 256
    max_size: int | None = None


def prepare(
    splits: Mapping[str, SegmentationDataset],
    name: str,
    settings: Mapping[str, Any],
    target: str,
    encoding: Encoding | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the prepared form of a data set; what an interrupted call has finished is kept.

    JPEG images of up to a million pixels are stored as they are (one tile, no second loss), unless `max_size`
    or PNG was asked for.

    A finished sample is made again where its source files have another size or time of change now, where it
    was skipped, or where its stored file is gone or has another size than the index says. While a split is
    being changed, the manifest does not name it, so that nobody reads a half of it.

    Args:
        splits: the data set's splits by name.
        name: its registered name.
        settings: its own settings, which decide what the labels mean.
        target: a folder or a URL.
        workers: threads (decoding and encoding run without Python's lock).
        skip_bad: leave unreadable samples out and list them in the manifest, instead of stopping. The files
            that a split built with `subset=True` lacks are listed, too.
        progress: called after each part with its number of samples.
        stored: settings of how its files are stored, to find them again.

    Raises:
        DataError: a sample is bad, the target cannot be written or holds a preparation of something else.
        TransientError: a file could not be read for a reason that may pass; such a file is never skipped.
    """
    encoding = encoding or Encoding()
    storage = open_storage(target, create=True)
    first = next(iter(splits.values()))
    ledger = _open_ledger(storage, target, first, name, settings, encoding, dict(stored or {}))
    with ThreadPoolExecutor(workers) as pool:
        for split, data in splits.items():
            store = functools.partial(_store, data, split, storage, encoding, skip_bad)
            bad: dict[str, str] = {}
            for rows in _parts(split, data, ledger, functools.partial(pool.map, store)):
                bad |= {printable(row.name): printable(row.error) for row in rows if row.error is not None}
                if progress:
                    progress(len(rows))
            ledger.complete(split, data, bad, _lacking(data) if skip_bad else {})
    return ledger.manifest


def _open_ledger(
    storage: Storage,
    target: str,
    source: SegmentationDataset,
    name: str,
    settings: Mapping[str, Any],
    encoding: Encoding,
    stored: dict[str, Any],
) -> _Ledger:
    """The ledger of what was begun at `target`, or a new one."""
    plan = {
        "dataset": name,
        "settings": dict(settings),
        "options": asdict(encoding),
        "format": FORMAT,
        "classes": source.classes.names,
        "palette": source.classes.palette,
        "range": source.span,
    }
    meaning = {
        "labels": source.labels.digest if isinstance(source, FileDataset) else None,
        "colours": source.ignored_colours if isinstance(source, FileDataset) else None,
    }
    _agree(storage, plan | meaning)
    begun = find_manifest(target, unfinished=True) or Manifest(**plan)
    made_of = {"source": source.place, "values": source.label_values(), "stored": stored}
    return _Ledger(storage, begun.model_copy(update=made_of))


@dataclass
class _Ledger:
    """The manifest of a target while its splits are made.

    Attributes:
        storage: the target.
        manifest: what is complete.
    """

    storage: Storage
    manifest: Manifest

    def withdraw(self, split: str) -> None:
        """Take a split out of the stored manifest, before any of its files changes."""
        if split in self.manifest.splits:
            self._write(self.manifest.without(split))

    def complete(
        self, split: str, data: SegmentationDataset, bad: Mapping[str, str], lacking: Mapping[str, str]
    ) -> None:
        """Enter a split of which all but the `bad` samples are stored; `lacking` are none of its samples."""
        rest, skipped = self.manifest.without(split), {**lacking, **bad}
        has_labels = getattr(data, "has_labels", True)
        entry = {
            "splits": {**rest.splits, split: len(data) - len(bad)},
            "parts": {**rest.parts, split: -(-len(data) // _PART)},
            "skipped": {**rest.skipped, split: skipped} if skipped else rest.skipped,
            "unlabelled": rest.unlabelled if has_labels else tuple(sorted({*rest.unlabelled, split})),
        }
        self._write(rest.model_copy(update=entry))

    def _write(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.storage.write(MANIFEST, manifest.model_dump_json(indent=1).encode())


def _agree(storage: Storage, plan: dict[str, Any]) -> None:
    """Require that the target is empty or holds this very preparation."""
    known, text = storage.names(""), json.dumps(plan)
    if PLAN in known:
        held, wanted = json.loads(storage.read(PLAN)), json.loads(text)
        for key in wanted:
            if held.get(key) != wanted[key]:
                differs = _MEANING.get(key) or f"with {key} = {held.get(key)}, not {wanted[key]}"
                raise DataError(f"{storage.where('')}: holds a preparation {differs}; choose another folder")
    elif known:
        raise DataError(f"{storage.where('')}: not empty and no preparation; choose another folder")
    else:
        storage.write(PLAN, text.encode())


def _parts(
    split: str, data: SegmentationDataset, ledger: _Ledger, store: Callable[[Sequence[int]], Iterable[Row]]
) -> Iterator[list[Row]]:
    """The rows of every part of a split's index; `store` writes the samples that are not up to date."""
    storage = ledger.storage
    stored = {f"{split}/{name}": size for name, size in storage.sizes(split).items()}
    for start in range(0, len(data), _PART):
        part = index_part(split, start // _PART)
        numbers = range(start, min(start + _PART, len(data)))
        held = _held(storage, split, numbers, data) if part in stored else []
        rows = dict(zip(numbers, held, strict=False))
        stale = [i for i in numbers if i not in rows or not _current(rows[i], data, i, stored)]
        if stale:
            ledger.withdraw(split)
            if part in stored:
                storage.write(part, b"")  # until all is made again, no line of it is true
            rows.update(zip(stale, store(stale), strict=True))
            storage.write(part, "".join(rows[i].line() for i in numbers).encode())
        yield [rows[i] for i in numbers]


def _held(storage: Storage, split: str, numbers: range, data: SegmentationDataset) -> list[Row]:
    """The rows of a finished part; none where it is damaged or of other samples: it is made again."""
    try:
        rows = read_part(storage, split, numbers[0] // _PART)
    except TransientError:
        raise
    except DataError:
        return []
    return rows if [row.name for row in rows] == [data.name(i) for i in numbers] else []


def _current(row: Row, data: SegmentationDataset, index: int, stored: Mapping[str, int | None]) -> bool:
    """Whether a row stands for the sample as it is.

    It was not left out, its source files are unchanged, and its file is there and, as far as both sizes are
    known, whole.
    """
    if row.file is None or row.file not in stored:
        return False
    now, size = _source(data, index), stored[row.file]
    unchanged = row.source is None or now is None or row.source == now
    return unchanged and (size is None or row.bytes is None or size == row.bytes)


def _lacking(data: SegmentationDataset) -> dict[str, str]:
    """What a split built with `subset=True` lacks, with the reason."""
    missing = {printable(path): "missing" for path in getattr(data, "missing", ())}
    several = getattr(data, "duplicates", ())
    return missing | {printable(names): "one name; only the first is there" for names in several}


def _source(data: SegmentationDataset, index: int) -> list[int] | None:
    """Bytes and times of change of a sample's files, where there are files and that is cheap to know."""
    return data.source_stamp(index) if isinstance(data, FileDataset) else None


def _store(
    data: SegmentationDataset, split: str, storage: Storage, encoding: Encoding, skip_bad: bool, index: int
) -> Row:
    """Write one sample; its row of the index."""
    source, name = _source(data, index), data.name(index)
    try:
        if printable(name) != name:
            raise DataError(f"{printable(name)}: the name is not UTF-8 and cannot be stored; rename the file")
        sample = data.load(index)
        original = _original(data, index, sample, encoding)
    except TransientError:
        raise  # the file may be good
    except DataError as error:
        if skip_bad:
            return Row(name, error=str(error))
        hint = "`cirkd data check` finds all bad files, --skip-bad leaves them out"
        raise DataError(f"{error}\n({hint})") from None
    image, label = _limited(sample, encoding.max_size)
    content = encode_sample(sample.name, image, label, encoding.tile, encoding.quality, original)
    path = f"{split}/{index:06d}.safetensors"
    storage.write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return Row(sample.name, None, source, path, len(content), digest, *label.shape)


def _original(data: SegmentationDataset, index: int, sample: Sample, encoding: Encoding) -> bytes | None:
    """The image's own file, where it can be kept as it is."""
    small = sample.image.shape[0] * sample.image.shape[1] <= _WHOLE_PIXELS
    fits = encoding.max_size is None or max(sample.size) <= encoding.max_size
    if not (isinstance(data, FileDataset) and small and fits and encoding.quality is not None):
        return None
    content = data.storage.read(data.name(index))
    return content if content.startswith(b"\xff\xd8") else None


def _limited(sample: Sample, max_size: int | None) -> tuple[UInt8, UInt8]:
    """Image and labels, scaled down where they are larger than asked for."""
    if max_size is None or max(sample.size) <= max_size:
        return sample.image, sample.label
    scale = max_size / max(sample.size)
    size = (max(1, round(sample.size[1] * scale)), max(1, round(sample.size[0] * scale)))
    image = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA)
    label = cv2.resize(sample.label, size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(image, np.uint8), np.asarray(label, np.uint8)


def verify_prepared(data: PreparedDataset, index: int) -> None:
    """Compare a sample's file with the checksum in the index.

    Raises:
        DataError: they differ.
    """
    path, expected = data.file(index)
    if hashlib.sha256(data.storage.read(path, expected)).hexdigest() != expected:
        raise DataError(f"{data.storage.where(path)}: differs from its checksum in the index")
