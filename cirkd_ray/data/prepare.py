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
    Manifest,
    PreparedDataset,
    encode_labels,
    encode_tiles,
    find_manifest,
)
from cirkd_ray.data.storage import Storage, open_storage
from cirkd_ray.errors import DataError

_PLAN = "preparation.json"
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

    Args:
        splits: the data set's splits by name.
        name: its registered name.
        settings: its own settings, which decide what the labels mean.
        target: a folder or a URL.
        workers: threads (decoding and encoding run without Python's lock).
        skip_bad: leave unreadable samples out and list them in the manifest, instead of stopping.
        progress: called with the number of samples that a part had, after each.

    Raises:
        DataError: a sample is bad, the target cannot be written or holds a preparation of something else.
    """
    encoding = encoding or Encoding()
    storage = open_storage(target, create=True)
    _agree(
        storage, {"dataset": name, "settings": dict(settings), "options": asdict(encoding), "format": FORMAT}
    )
    before = find_manifest(target)
    skipped = dict(before.skipped) if before else {}
    counts = dict(before.splits) if before else {}
    unlabelled = {split for split, data in splits.items() if not getattr(data, "has_labels", True)}
    with ThreadPoolExecutor(workers) as pool:
        for split, data in splits.items():
            store = functools.partial(_store, data, split, storage, encoding, skip_bad)
            counts[split] = 0
            for rows in _parts(split, data, storage, functools.partial(pool.map, store)):
                skipped |= {row["name"]: row["error"] for row in rows if "error" in row}
                counts[split] += sum("error" not in row for row in rows)
                if progress:
                    progress(len(rows))
    classes = next(iter(splits.values())).classes
    manifest = Manifest(
        format=FORMAT,
        dataset=name,
        settings=dict(settings),
        classes=classes.names,
        palette=classes.palette,
        splits=counts,
        unlabelled=tuple(sorted(unlabelled | set(before.unlabelled if before else ()))),
        skipped=skipped,
        options=asdict(encoding),
    )
    storage.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def _agree(storage: Storage, plan: dict[str, Any]) -> None:
    """Go on with the preparation that the target holds, if it is this one."""
    known = storage.names("")
    if _PLAN in known:
        held = json.loads(storage.read(_PLAN))
        other = [key for key in plan if held.get(key) != plan[key]]
        if other:
            raise DataError(
                f"{storage.where('')}: holds a preparation with {other[0]} = {held.get(other[0])}, "
                f"not {plan[other[0]]}; choose another folder"
            )
    elif known:
        raise DataError(f"{storage.where('')}: not empty and no preparation; choose another folder")
    else:
        storage.write(_PLAN, json.dumps(plan).encode())


def _parts(
    split: str,
    data: SegmentationDataset,
    storage: Storage,
    store: Callable[[Sequence[int]], Iterable[dict[str, Any]]],
) -> Iterator[list[dict[str, Any]]]:
    """The lines of every part of a split's index; `store` writes the samples of a part that is not there."""
    done = set(storage.names(split))
    for start in range(0, len(data), _PART):
        part = f"index-{start // _PART:06d}.jsonl"
        numbers = range(start, min(start + _PART, len(data)))
        rows = _rows(storage, split, part, [data.name(i) for i in numbers]) if part in done else None
        if rows is None:
            rows = list(store(numbers))
            storage.write(f"{split}/{part}", "".join(json.dumps(row) + "\n" for row in rows).encode())
        yield rows


def _rows(storage: Storage, split: str, part: str, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """The lines of a finished part; None where it is damaged or of other samples: it is made again."""
    try:
        rows = [json.loads(line) for line in storage.read(f"{split}/{part}").decode().splitlines()]
    except ValueError:
        return None
    return rows if [row.get("name") for row in rows] == list(names) else None


def _store(
    data: SegmentationDataset, split: str, storage: Storage, encoding: Encoding, skip_bad: bool, index: int
) -> dict[str, Any]:
    """Write one sample; its line of the index."""
    try:
        sample = data.load(index)
        original = _original(data, index, sample, encoding)
    except DataError as error:
        if skip_bad:
            return {"name": data.name(index), "error": str(error)}
        hint = "`cirkd data check` finds all bad files, --skip-bad leaves them out"
        raise DataError(f"{error}\n({hint})") from None
    content, size = encode_sample(sample, original, encoding)
    path = f"{split}/{index:06d}.safetensors"
    storage.write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return {
        "name": sample.name,
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
    if hashlib.sha256(data.storage.read(path)).hexdigest() != expected:
        raise DataError(f"{data.storage.where(path)}: differs from its checksum in the index")
