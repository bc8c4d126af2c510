"""Conversion of a data set into the ready-to-train form of `prepared`, in parts that outlive a stop."""

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
from safetensors.numpy import save

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.prepared import (
    FORMAT,
    MANIFEST,
    PLAN,
    Manifest,
    PreparedDataset,
    encode_labels,
    encode_tiles,
    find_manifest,
    index_part,
)
from cirkd_ray.data.storage import Storage, open_storage, printable
from cirkd_ray.errors import DataError, TransientError

Row = dict[str, Any]
_MEANING = {
    "classes": "of other classes, or of the same in another order",
    "palette": "with other colours of the classes",
    "labels": "in which label values stand for other classes",
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
) -> Manifest:
    """Write the prepared form of a data set; what an interrupted call has finished is kept.

    JPEG images of up to a million pixels are stored as they are (one tile, no second loss), unless `max_size`
    or PNG was asked for.

    A finished sample is made again where its source files have another size or time of change now, where it
    was skipped, or where what was stored of it is gone or has another size than the index says. Of a split
    that is being changed the manifest says nothing, so that nobody reads a half of it.

    Args:
        splits: the data set's splits by name.
        name: its registered name.
        settings: its own settings, which decide what the labels mean.
        target: a folder or a URL.
        workers: threads (decoding and encoding run without Python's lock).
        skip_bad: leave unreadable samples out and list them in the manifest, instead of stopping; likewise
            the files that a split built with `subset=True` does without.
        progress: called with the number of samples that a part had, after each.

    Raises:
        DataError: a sample is bad, the target cannot be written or holds a preparation of something else.
        TransientError: a file could not be read for a reason that may pass; such a file is never skipped.
    """
    encoding = encoding or Encoding()
    storage = open_storage(target, create=True)
    source = next(iter(splits.values()))
    plan = {
        "dataset": name,
        "settings": dict(settings),
        "options": asdict(encoding),
        "format": FORMAT,
        "classes": source.classes.names,
        "palette": source.classes.palette,
        "labels": source.labels.digest if isinstance(source, FileDataset) else None,
    }
    _agree(storage, plan)
    ledger = _Ledger(
        storage,
        find_manifest(target, unfinished=True) or Manifest(**{k: plan[k] for k in plan if k != "labels"}),
    )
    with ThreadPoolExecutor(workers) as pool:
        for split, data in splits.items():
            store = functools.partial(_store, data, split, storage, encoding, skip_bad)
            bad: dict[str, str] = {}
            for rows in _parts(split, data, ledger, functools.partial(pool.map, store)):
                bad |= {printable(row["name"]): printable(row["error"]) for row in rows if "error" in row}
                if progress:
                    progress(len(rows))
            ledger.complete(split, data, bad, _lacking(data) if skip_bad else {})
    return ledger.manifest


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
            self.manifest = self.manifest.without(split)
            self._write()

    def complete(
        self, split: str, data: SegmentationDataset, bad: Mapping[str, str], lacking: Mapping[str, str]
    ) -> None:
        """Enter a split that is all there but its bad samples; `lacking` are none of its samples."""
        rest, skipped = self.manifest.without(split), {**lacking, **bad}
        has_labels = getattr(data, "has_labels", True)
        self.manifest = rest.model_copy(
            update={
                "splits": {**rest.splits, split: len(data) - len(bad)},
                "parts": {**rest.parts, split: -(-len(data) // _PART)},
                "skipped": {**rest.skipped, split: skipped} if skipped else rest.skipped,
                "unlabelled": rest.unlabelled if has_labels else tuple(sorted({*rest.unlabelled, split})),
            }
        )
        self._write()

    def _write(self) -> None:
        self.storage.write(MANIFEST, self.manifest.model_dump_json(indent=1).encode())


def _agree(storage: Storage, plan: dict[str, Any]) -> None:
    """Go on with the preparation that the target holds, if it is this one."""
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
    """The lines of every part of a split's index; `store` writes the samples that are not there as they are
    now.
    """
    storage = ledger.storage
    stored = {f"{split}/{name}": size for name, size in storage.sizes(split).items()}
    for start in range(0, len(data), _PART):
        part = index_part(split, start // _PART)
        numbers = range(start, min(start + _PART, len(data)))
        held = _rows(storage, part, [data.name(i) for i in numbers]) if part in stored else None
        rows = dict(zip(numbers, held or (), strict=held is not None))
        good = {i for i, row in rows.items() if _current(row, data, i) and _intact(row, stored)}
        stale = [i for i in numbers if i not in good]
        if stale:
            ledger.withdraw(split)
            if part in stored:
                storage.write(part, b"")  # until all is made again, no line of it is true
            rows.update(zip(stale, store(stale), strict=True))
            storage.write(part, "".join(json.dumps(rows[i]) + "\n" for i in numbers).encode())
        yield [rows[i] for i in numbers]


def _current(row: Row, data: SegmentationDataset, index: int) -> bool:
    """Whether a line stands for the sample as it is: not skipped, its files unchanged since."""
    if "error" in row:
        return False
    made_of, there = row.get("source"), _source(data, index)
    return made_of is None or there is None or made_of == there


def _intact(row: Row, stored: Mapping[str, int | None]) -> bool:
    """Whether the file that a line names is there and, as far as both sizes are known, whole."""
    path, expected = str(row.get("file")), row.get("bytes")
    return path in stored and (stored[path] is None or expected is None or stored[path] == expected)


def _lacking(data: SegmentationDataset) -> dict[str, str]:
    """What a split built with `subset=True` does without, with the reason."""
    missing = {printable(path): "missing" for path in getattr(data, "missing", ())}
    several = {
        printable(names): "one name; only the first is there" for names in getattr(data, "duplicates", ())
    }
    return missing | several


def _source(data: SegmentationDataset, index: int) -> list[int] | None:
    """Bytes and times of change of a sample's files, where there are files and that is cheap to know."""
    return data.source_stamp(index) if isinstance(data, FileDataset) else None


def _rows(storage: Storage, part: str, names: Sequence[str]) -> list[Row] | None:
    """The lines of a finished part; None where it is damaged or of other samples: it is made again."""
    try:
        rows = [json.loads(line) for line in storage.read(part).decode().splitlines()]
    except ValueError:
        return None
    return rows if [row.get("name") for row in rows] == list(names) else None


def _store(
    data: SegmentationDataset, split: str, storage: Storage, encoding: Encoding, skip_bad: bool, index: int
) -> Row:
    """Write one sample; its line of the index."""
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
            return {"name": name, "error": str(error)}
        hint = "`cirkd data check` finds all bad files, --skip-bad leaves them out"
        raise DataError(f"{error}\n({hint})") from None
    content, size = encode_sample(sample, original, encoding)
    path = f"{split}/{index:06d}.safetensors"
    storage.write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return {
        "name": sample.name,
        "source": source,
        "file": path,
        "bytes": len(content),
        "sha256": digest,
        "height": size[0],
        "width": size[1],
    }


def _original(data: SegmentationDataset, index: int, sample: Sample, encoding: Encoding) -> bytes | None:
    """The image's own file, where it can be kept as it is."""
    small = sample.image.shape[0] * sample.image.shape[1] <= _WHOLE_PIXELS
    fits = encoding.max_size is None or max(sample.size) <= encoding.max_size
    if not (isinstance(data, FileDataset) and small and fits and encoding.quality is not None):
        return None
    content = data.storage.read(data.name(index))
    return content if content.startswith(b"\xff\xd8") else None


def encode_sample(
    sample: Sample, original: bytes | None, encoding: Encoding
) -> tuple[bytes, tuple[int, int]]:
    """The content of a sample's file, and the (height, width) of what it holds."""
    image, label = _limited(sample, encoding.max_size)
    height, width = label.shape
    tile = max(height, width) if original is not None else encoding.tile
    images = [original] if original is not None else encode_tiles(image, tile, encoding.quality)
    labels = encode_labels(label, tile)
    tensors: dict[str, np.ndarray] = {}
    for kind, tiles in (("image", images), ("label", labels)):
        tensors[kind] = np.frombuffer(b"".join(tiles), np.uint8)
        tensors[f"{kind}_ends"] = np.cumsum([len(part) for part in tiles], dtype=np.int64)
    facts = {"height": str(height), "width": str(width), "tile": str(tile), "name": sample.name}
    return save(tensors, metadata=facts), (height, width)


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
