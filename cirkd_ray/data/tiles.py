"""The file of one prepared sample: image and labels as tiles, so that a reader decodes only what it needs.

A safetensors file with the tensors `image` and `label` (the encoded tiles, row by row), `image_ends` and
`label_ends` (where each tile ends), and the metadata `height`, `width`, `tile` (its side) and `name`.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import cv2
import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.codec import decode_image
from cirkd_ray.errors import DataError, TransientError
from cirkd_ray.files import PASSING


def encode_sample(
    name: str, image: UInt8, label: UInt8, tile: int, quality: int | None, original: bytes | None = None
) -> bytes:
    """The content of a sample's file.

    Args:
        name: the sample's name.
        image: H x W x 3, RGB.
        label: H x W class indices; tiles of them are deflated.
        tile: side of a tile in pixels.
        quality: of JPEG tiles (4:2:0); None makes PNG tiles (lossless).
        original: the image as it was encoded already; it becomes the only tile.
    """
    height, width = label.shape
    if original is not None:
        tile = max(height, width)
    starts = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    places = [np.s_[y : y + tile, x : x + tile] for y, x in starts]
    labels = [zlib.compress(np.ascontiguousarray(label[place]).tobytes(), 6) for place in places]
    images = [_encode(image[place], quality) for place in places] if original is None else [original]
    tensors: dict[str, NDArray[Any]] = {}
    for kind, tiles in (("image", images), ("label", labels)):
        tensors[kind] = np.frombuffer(b"".join(tiles), np.uint8)
        tensors[f"{kind}_ends"] = np.cumsum([len(part) for part in tiles], dtype=np.int64)
    facts = {"height": str(height), "width": str(width), "tile": str(tile), "name": name}
    return save(tensors, metadata=facts)


def _encode(part: UInt8, quality: int | None) -> bytes:
    way = (".png", [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if quality is not None:
        way = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
    done, data = cv2.imencode(way[0], cv2.cvtColor(part, cv2.COLOR_RGB2BGR), way[1])
    if not done:
        raise DataError("tile: it could not be encoded")
    content: bytes = data.tobytes()
    return content


class TiledSample:
    """A sample of which windows are decoded (see `base.Readable`)."""

    def __init__(self, name: str, tensors: MappedFile | Content, where: str) -> None:
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


class MappedFile:
    """A sample's file on this machine; only the parts that are asked for are read."""

    def __init__(self, path: str) -> None:
        try:
            open_file: Any = safetensors.safe_open
            self._file = open_file(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            kind = TransientError if getattr(error, "errno", None) in PASSING else DataError
            raise kind(f"{path}: damaged or missing ({error})") from None
        self.facts: dict[str, str] = self._file.metadata() or {}

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor."""
        array: NDArray[Any] = self._file.get_tensor(name)
        return array

    def part(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` - 1 of a tensor."""
        content: bytes = self._file.get_slice(name)[start:end].tobytes()
        return content


class Content:
    """The same from the file's bytes."""

    def __init__(self, data: bytes, where: str) -> None:
        try:
            self._tensors: dict[str, NDArray[Any]] = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except (safetensors.SafetensorError, ValueError) as error:
            raise DataError(f"{where}: damaged ({error})") from None
        self.facts: dict[str, str] = header.get("__metadata__", {})

    def whole(self, name: str) -> NDArray[Any]:
        """A tensor."""
        return self._tensors[name]

    def part(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` - 1 of a tensor."""
        return self._tensors[name][start:end].tobytes()
