"""The ready-to-train form of a data set: a file a sample, images as tiles, labels as class indices.

A reader decodes only the tiles that a crop needs. A prepared root takes the place of the original one: the
same data set name, settings and splits, another `root` (see `cirkd data prepare`).

Root: `preparation.json` (what is prepared, and how) and, once a split is finished, `manifest.json`; for each
split `SPLIT/index-*.jsonl` (one line a sample: name, source, file, bytes, sha256, height, width; or name and
error; source holds bytes and times of change of the files it was made of, where known) and
`SPLIT/NUMBER.safetensors` with the tensors `image` and `label` (the tiles, row by row) and `image_ends` and
`label_ends` (where each tile ends).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import load as load_tensors

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8
from cirkd_ray.data.codec import decode_image
from cirkd_ray.data.storage import PASSING, LocalStorage, Storage, open_storage
from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.types import ClassSet

T = TypeVar("T")
MANIFEST = "manifest.json"
PLAN = "preparation.json"
"""What `prepare` writes first; without a manifest beside it no split has been finished."""
FORMAT = 2
_READERS = 16


class Manifest(BaseModel):
    """The content of `manifest.json`; all is there of the splits that it names.

    Attributes:
        format: version of the form.
        dataset: registered name.
        settings: the data set's own settings that decided the labels.
        classes, palette: names and colours.
        splits: number of samples of each split.
        parts: number of parts of each split's index; a longer one's may be left over.
        unlabelled: splits whose labels are not public.
        skipped: of each split, the samples left out because they could not be read, and the files missing or
            of a name that came twice, with the reason.
        options: how images were encoded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    dataset: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: dict[str, int] = {}
    parts: dict[str, int] = {}
    unlabelled: tuple[str, ...] = ()
    skipped: dict[str, dict[str, str]] = {}
    options: dict[str, Any]

    def without(self, split: str) -> Manifest:
        """The manifest as it would be had the split never been prepared."""

        def rest(held: dict[str, T]) -> dict[str, T]:
            return {name: value for name, value in held.items() if name != split}

        return self.model_copy(
            update={
                "splits": rest(self.splits),
                "parts": rest(self.parts),
                "skipped": rest(self.skipped),
                "unlabelled": tuple(name for name in self.unlabelled if name != split),
            }
        )


def index_part(split: str, number: int) -> str:
    """Path of a part of a split's index."""
    return f"{split}/index-{number:06d}.jsonl"


def find_manifest(root: str | Path, unfinished: bool = False) -> Manifest | None:
    """The manifest of a prepared root; None where the root is not one.

    Args:
        unfinished: None as well where a preparation has been begun of which no split is finished.

    Raises:
        DataError: it is damaged, of another version or, unless `unfinished`, not there yet.
    """
    storage = open_storage(root)
    names = storage.names("")
    if MANIFEST not in names:
        dataset = _begun(storage) if PLAN in names and not unfinished else None
        if dataset is not None:
            raise DataError(
                f"{root}: an unfinished preparation of {dataset!r}; repeat `cirkd data prepare {dataset} ... "
                f"{root}`, which goes on where it stopped"
            )
        return None
    try:
        content = json.loads(storage.read(MANIFEST))
        if not isinstance(content, dict) or "format" not in content or "dataset" not in content:
            return None  # some other program's manifest
        if content["format"] != FORMAT:
            raise DataError(
                f"{storage.where(MANIFEST)}: of format {content['format']}, this version reads {FORMAT}; "
                "prepare the data set again, into another folder"
            )
        return Manifest.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise DataError(f"{storage.where(MANIFEST)}: damaged ({str(error).splitlines()[0]})") from None


def _begun(storage: Storage) -> str | None:
    """The data set that `preparation.json` says is being prepared; None where it is some other program's."""
    try:
        content = json.loads(storage.read(PLAN))
    except ValueError:
        return None
    ours = isinstance(content, dict) and {"dataset", "options", "format"} <= content.keys()
    return str(content["dataset"]) if ours else None


def open_prepared(
    root: str | Path, manifest: Manifest, name: str, split: str, settings: Mapping[str, Any]
) -> SegmentationDataset:
    """A split of a prepared root.

    Raises:
        DataError: it holds another data set, was prepared with other settings, or lacks the split.
    """
    if manifest.dataset != name:
        raise DataError(f"{root}: holds the prepared data set {manifest.dataset!r}, not {name!r}")
    if split not in manifest.splits:
        have = f"only {', '.join(manifest.splits)}" if manifest.splits else "nor was another"
        raise DataError(f"{root}: the split {split!r} was not prepared, {have}; run cirkd data prepare again")
    for key, value in manifest.settings.items():
        if settings.get(key) != value:
            raise DataError(
                f"{root}: was prepared with {key}={value!r}, the recipe says {settings.get(key)!r}"
            )
    return PreparedDataset(root, manifest, split)


class PreparedDataset(SegmentationDataset):
    """One split of a prepared root."""

    def __init__(self, root: str | Path, manifest: Manifest, split: str) -> None:
        self.storage: Storage = open_storage(root)
        self.manifest = manifest
        self.split = split
        self.classes = ClassSet(manifest.classes, manifest.palette)
        self.has_labels = split not in manifest.unlabelled
        self.rows = read_index(self.storage, split, manifest.parts[split])
        if len(self.rows) != manifest.splits[split]:
            raise DataError(
                f"{self.storage.where(split)}: the index has {len(self.rows)} samples, "
                f"the manifest says {manifest.splits[split]}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The name that the sample has in the original data set."""
        return str(self.rows[index][0])

    def file(self, index: int) -> tuple[str, str]:
        """Path below the root and SHA-256 of the sample's file."""
        return self.rows[index][1:3]

    def open(self, index: int) -> TiledSample:
        """The sample, of which nothing but the header is decoded yet."""
        name, path, digest = self.rows[index]
        where = self.storage.where(path)
        if isinstance(self.storage, LocalStorage):
            return TiledSample(name, _MappedFile(where), where)
        return TiledSample(name, _Content(self.storage.read(path, digest), where), where)

    def load(self, index: int) -> Sample:
        """Decode the whole sample."""
        tiled = self.open(index)
        height, width = tiled.size
        return Sample(
            tiled.image_window(0, 0, height, width), tiled.label_window(0, 0, height, width), tiled.name
        )


def read_index(storage: Storage, split: str, parts: int) -> list[tuple[str, str, str]]:
    """(name, file, sha256) of every sample of a split, in order.

    Raises:
        DataError: one of the index's parts is missing or damaged.
    """

    def rows(number: int) -> list[tuple[str, str, str]]:
        path = index_part(split, number)
        try:
            lines = [json.loads(line) for line in storage.read(path).decode().splitlines()]
            return [(row["name"], row["file"], row["sha256"]) for row in lines if "error" not in row]
        except (ValueError, KeyError) as error:
            raise DataError(f"{storage.where(path)}: damaged ({error})") from None

    with ThreadPoolExecutor(max(1, min(_READERS, parts))) as pool:  # a request for each behind a URL
        return [row for found in pool.map(rows, range(parts)) for row in found]


class TiledSample:
    """A sample of which windows are decoded (see `base.Readable`)."""

    def __init__(self, name: str, tensors: _MappedFile | _Content, where: str) -> None:
        self.name = name
        self._tensors = tensors
        self._where = where
        try:
            self.size = (int(tensors.facts["height"]), int(tensors.facts["width"]))
            self._tile = int(tensors.facts["tile"])
        except (KeyError, ValueError):
            raise DataError(f"{where}: not a sample file of cirkd data prepare") from None
        self._columns = -(-self.size[1] // self._tile)

    def image_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """RGB window of the image."""
        return self._window("image", (top, left, bottom, right), (3,))

    def label_window(self, top: int, left: int, bottom: int, right: int) -> UInt8:
        """Window of the labels."""
        return self._window("label", (top, left, bottom, right), ())

    def _window(self, kind: str, bounds: tuple[int, int, int, int], channels: tuple[int, ...]) -> UInt8:
        (top, left, bottom, right), side = bounds, self._tile
        ends = self._tensors.whole(f"{kind}_ends")
        window: UInt8 = np.empty((bottom - top, right - left, *channels), np.uint8)
        for row in range(top // side, (bottom - 1) // side + 1):
            for column in range(left // side, (right - 1) // side + 1):
                number = row * self._columns + column
                start = int(ends[number - 1]) if number else 0
                data = self._tensors.part(kind, start, int(ends[number]))
                y, x = row * side, column * side
                shape = (min(side, self.size[0] - y), min(side, self.size[1] - x), *channels)
                tile = self._decode(kind, data, shape)
                y0, y1, x0, x1 = max(top, y), min(bottom, y + side), max(left, x), min(right, x + side)
                window[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return window

    def _decode(self, kind: str, data: bytes, shape: tuple[int, ...]) -> UInt8:
        if kind == "image":
            tile = decode_image(data, self._where)
        else:
            try:
                tile = np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)
            except (zlib.error, ValueError) as error:
                raise DataError(f"{self._where}: damaged labels ({error})") from None
        if tile.shape != shape:
            raise DataError(f"{self._where}: a tile is {tile.shape}, expected {shape}")
        return tile


class _MappedFile:
    """Parts of a safetensors file of this machine; only what is asked for is read."""

    def __init__(self, path: str) -> None:
        try:
            open_file: Any = safetensors.safe_open
            self._file = open_file(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            kind = TransientError if getattr(error, "errno", None) in PASSING else DataError
            raise kind(f"{path}: damaged or missing ({error})") from None
        self.facts: dict[str, str] = self._file.metadata() or {}

    def whole(self, name: str) -> NDArray[np.int64]:
        array: NDArray[np.int64] = self._file.get_tensor(name)
        return array

    def part(self, name: str, start: int, end: int) -> bytes:
        content: bytes = self._file.get_slice(name)[start:end].tobytes()
        return content


class _Content:
    """The same from the file's bytes."""

    def __init__(self, data: bytes, where: str) -> None:
        try:
            self._tensors = load_tensors(data)
            length = int.from_bytes(data[:8], "little")
            self.facts: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        except (safetensors.SafetensorError, ValueError) as error:
            raise DataError(f"{where}: damaged ({error})") from None

    def whole(self, name: str) -> NDArray[np.int64]:
        array: NDArray[np.int64] = self._tensors[name]
        return array

    def part(self, name: str, start: int, end: int) -> bytes:
        content: bytes = self._tensors[name][start:end].tobytes()
        return content


def encode_tiles(image: UInt8, tile: int, quality: int | None) -> list[bytes]:
    """Tiles of an RGB image, row by row: JPEG (4:2:0) of that quality, or PNG (lossless) where it is None."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 4] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]
    extension, tiles = (".png" if quality is None else ".jpg"), []
    for y in range(0, image.shape[0], tile):
        for x in range(0, image.shape[1], tile):
            part = cv2.cvtColor(image[y : y + tile, x : x + tile], cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode(extension, part, options)
            if not done:
                raise DataError("a tile could not be encoded")
            tiles.append(data.tobytes())
    return tiles


def encode_labels(label: UInt8, tile: int) -> list[bytes]:
    """Tiles of a label map, row by row, deflated."""
    return [
        zlib.compress(np.ascontiguousarray(label[y : y + tile, x : x + tile]).tobytes(), 6)
        for y in range(0, label.shape[0], tile)
        for x in range(0, label.shape[1], tile)
    ]
