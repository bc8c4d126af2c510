"""Decoding of label maps: a file that was cut short is an error, and no label is ever guessed.

PNG files, as labels should be, carry checksums in all their parts: any damage to them is found. TIFF files
carry none: one that is damaged before its end may decode to wrong values, which nothing tells.
"""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.codec import PNG_SIGNATURE, explain, known, opencv_decode, short
from cirkd_ray.data.tiff import (
    BITS_PER_SAMPLE,
    COMPRESSION,
    ORIENTATION,
    PHOTOMETRIC,
    TIFF,
    neutral,
    value_of,
)
from cirkd_ray.errors import DataError

_PALETTE, _GRAY, _RGB = 3, 0, (2, 6)
_PNG_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_LARGEST = 2**30
"""Pixels of the largest image that OpenCV decodes."""
TRANSPARENT = (
    "has transparent pixels; save the mask without alpha, and give what they stand for a "
    "colour of its own (pixels without a class: `ignore: [[R, G, B]]` in dataset.yaml)"
)
_LOSSY = {b"\xff\xd8": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"}


def decode_label(data: bytes, where: str) -> UInt8:
    """An H x W uint8 map of the stored indices, from PNG or TIFF.

    Palette images give the palette's indices (OpenCV would give colours turned to gray), gray ones of 1, 2
    and 4 bits the stored numbers (decoders stretch them to 0..255), 16-bit ones their value where it fits.

    Raises:
        DataError: damaged, truncated, of a lossy format, or holding colours; `where` names it.
    """
    label = decode_mask(data, where)
    if label.ndim == 3:
        raise ColourLabels(f"{where}: holds RGB values; labels must be gray or palette PNGs of class indices")
    return label


class ColourLabels(DataError):
    """A label map holds colours where indices are expected."""


def decode_mask(data: bytes, where: str) -> UInt8:
    """`decode_label`, but a mask of colours is given as H x W x 3 RGB; a constant alpha band is left out."""
    if data.startswith(TIFF):
        return _tiff_mask(data, where)
    if not data.startswith(PNG_SIGNATURE) or len(data) < 33:
        lossy = next((kind for start, kind in _LOSSY.items() if data.startswith(start)), None)
        why = f"a {lossy} file, which may change or lose label values" if lossy else "not a PNG file"
        raise DataError(f"{where}: {why}; labels must be PNG (or TIFF) maps of class indices")
    pixels = _compressed_pixels(data, where)
    depth, colour = data[24], data[25]
    if colour not in (_PALETTE, _GRAY) or (depth in (8, 16) and colour == _GRAY):
        if colour not in (_GRAY, *_RGB) or (colour in _RGB and depth != 8):
            kind = _PNG_COLOURS.get(colour, f"colour type {colour}")
            what = f"holds {depth}-bit {kind} values"
            raise DataError(f"{where}: {what}; labels must be gray or palette PNGs of class indices")
        label = opencv_decode(data, cv2.IMREAD_UNCHANGED, where)
        if label is None:
            explain(data, where)
        whole = known(label, where)
        return _narrow(whole, where) if colour == _GRAY else _opaque(whole, where)[..., ::-1].copy()
    indices = _indices(data, where)
    _require_all_rows(data, pixels, where)
    if colour == _GRAY:
        indices = indices.astype(np.uint8) // (1 if depth == 1 else 255 // (2**depth - 1))
    return np.ascontiguousarray(indices, dtype=np.uint8)


def _tiff_mask(data: bytes, where: str) -> UInt8:
    """The values or colours of a TIFF file, as stored."""
    if value_of(data, COMPRESSION) in (6, 7):
        raise DataError(f"{where}: a JPEG-compressed TIFF, which changes label values; save labels as PNG")
    try:
        with Image.open(io.BytesIO(neutral(data, ORIENTATION, PHOTOMETRIC))) as image:
            image.load()
            mode, stored = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: damaged or truncated ({short(error)})") from None
    if mode in ("RGB", "RGBA", "RGBX"):
        return _opaque(stored, where).copy()
    if mode not in ("1", "L", "P") and not (stored.ndim == 2 and stored.dtype.kind in "iu"):
        raise DataError(f"{where}: holds {mode} values; labels must be gray or palette maps of class indices")
    if stored.dtype not in (np.uint8, np.bool_):
        if stored.size and stored.min() < 0:
            raise DataError(f"{where}: label values down to {stored.min()}; class indices start at 0")
        stored = stored.clip(0, 65535).astype(np.uint16)
    if mode == "L":
        stored = stored // (255 // (2 ** min(8, value_of(data, BITS_PER_SAMPLE) or 8) - 1))
    return _narrow(
        np.ascontiguousarray(stored.astype(np.uint8) if stored.dtype == np.bool_ else stored), where
    )


def _opaque(mask: np.ndarray, where: str) -> np.ndarray:
    """The three colours of a mask.

    Raises:
        DataError: its alpha band says something that would be lost.
    """
    if mask.shape[2] == 4 and mask[..., 3].min() != mask[..., 3].max():
        raise DataError(f"{where}: {TRANSPARENT}")
    return mask[..., :3]


def colour_table(data: bytes) -> UInt8 | None:
    """The RGB colours and transparency (K x 4) of a palette PNG or TIFF; None for files of another kind."""
    if data.startswith(PNG_SIGNATURE) and data[25] != _PALETTE:
        return None
    # Image.open would refuse sound labels of large images.
    opened = PngImageFile if data.startswith(PNG_SIGNATURE) else Image.open
    with opened(io.BytesIO(data)) as image:
        colours = image.getpalette("RGB") if image.mode == "P" else None
        clear = image.info.get("transparency", b"")
    if colours is None:
        return None
    rgb = np.array(colours, np.uint8).reshape(-1, 3)
    alpha = np.full((len(rgb), 1), 255, np.uint8)
    if isinstance(clear, bytes):
        known = np.frombuffer(clear, np.uint8)[: len(rgb)]
        alpha[: len(known), 0] = known
    else:  # a single index
        alpha[clear : clear + 1] = 0
    return np.hstack([rgb, alpha])


def _narrow(label: np.ndarray, where: str) -> UInt8:
    if label.dtype == np.uint16:
        if label.size and label.max() > 255:
            raise DataError(f"{where}: 16-bit label values up to {label.max()}; class indices end at 255")
        label = label.astype(np.uint8)
    if label.dtype != np.uint8 or label.ndim != 2:
        raise DataError(f"{where}: labels decode to {label.dtype} {label.shape}, not to H x W indices")
    return label


def _compressed_pixels(png: bytes, where: str) -> bytes:
    """The content of all chunks of pixels, after a look at the checksum of every chunk.

    Pillow's `verify` would compare the checksums, too, but the last one; and the pixels are needed in any
    case, because only they tell how many rows there are.
    """
    view, start, kind, pixels = memoryview(png), len(PNG_SIGNATURE), b"", []
    while kind != b"IEND":
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        kind = png[start + 4 : start + 8]
        if zlib.crc32(view[start + 4 : end]).to_bytes(4, "big") != png[end : end + 4]:
            raise DataError(f"{where}: damaged or truncated (a part differs from its checksum)")
        if kind == b"IDAT":
            pixels.append(view[start + 8 : end])
        start = end + 4
    return b"".join(pixels)


def _require_all_rows(png: bytes, pixels: bytes, where: str) -> None:
    """Refuse a map of one channel with fewer rows than its header says, which Pillow would fill with 0."""
    if png[28]:  # interlaced: its passes have rows of their own
        return
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    expected = height * (1 + -(-width * png[24] // 8))
    try:
        found = len(zlib.decompressobj().decompress(pixels, expected + 1))
    except zlib.error as error:
        raise DataError(f"{where}: damaged or truncated ({error})") from None
    if found < expected:
        raise DataError(f"{where}: damaged or truncated (it ends before its last row)")


def _indices(png: bytes, where: str) -> np.ndarray:
    """The palette's indices, or gray values of few bits stretched to 0..255."""
    try:
        # Image.open would refuse sound labels of large images: OpenCV's limit is six times as high.
        with PngImageFile(io.BytesIO(png)) as image:
            if image.width * image.height > _LARGEST:
                raise DataError(f"{where}: damaged, or larger than images may be ({_LARGEST} pixels)")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: damaged or truncated ({short(error)})") from None
