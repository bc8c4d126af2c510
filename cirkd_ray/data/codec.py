"""Decoding of images and label maps: a file that was cut short is an error, and no label is ever guessed.

PNG files, as labels should be, carry checksums in all their parts: any damage to them is found. JPEG, WebP,
TIFF and BMP carry none: one that is damaged before its end may decode to wrong values, which nothing tells.
"""

from __future__ import annotations

import io
import math
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.tiff import (
    BITS_PER_SAMPLE,
    COMPRESSION,
    EXTRA_SAMPLES,
    ORIENTATION,
    PHOTOMETRIC,
    TIFF,
    neutral,
    value_of,
)
from cirkd_ray.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GRAY = 3, 0
_RGB, _WITH_ALPHA = (2, 6), (b"\4", b"\6")
_PNG_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_LARGEST = 2**30
"""Pixels of the largest image that OpenCV decodes."""
# A camera's orientation tag is applied nowhere: labels are drawn on the pixels as stored.
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_LOSSY = {b"\xff\xd8": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"}
_DEPTHS = (8, 10, 12, 14, 16)
Range = tuple[float, float]
"""The stored values that become 0 and 255."""


class Decoded(NamedTuple):
    """An image, and what reading changed in it.

    Attributes:
        pixels: H x W x 3 uint8, RGB.
        changes: what the user should know, the same text for images of one kind; empty for plain 8-bit RGB.
    """

    pixels: UInt8
    changes: tuple[str, ...] = ()


def decode_image(data: bytes, where: str, span: Range | None = None) -> UInt8:
    """An H x W x 3 uint8 RGB image from JPEG, PNG, WebP or another format of OpenCV, told by its content.

    This is the one way in which images are read. Pixels stay where they are stored: a camera's orientation
    tag (EXIF) is not applied. Gray images get three equal channels. A fourth band is dropped, and never
    multiplies the others. 8-bit values stay as they are; others are scaled to 8 bits, `span` to 0..255,
    rounded, and what lies outside is clipped. Without a `span`, 16-bit values are scaled by the bits that the
    image uses (8, 10, 12, 14 or 16), floating-point values from 0..1, or from 0..255 where one is above 1.

    Args:
        data: the file's content.
        where: names it in errors.
        span: the range of values of more than 8 bits.

    Raises:
        DataError: not an image, truncated, damaged as far as its format shows it, or of values whose range
            must be declared; `where` names it.
    """
    return read_image(data, where, span).pixels


def read_image(data: bytes, where: str, span: Range | None = None) -> Decoded:
    """`decode_image`, with what it changed."""
    if not data:
        raise DataError(f"{where}: the file is empty")
    plain = data.startswith(b"\xff\xd8") or (
        data.startswith(PNG_SIGNATURE) and data[24:25] != b"\x10" and data[25:26] not in _WITH_ALPHA
    )
    flags = _COLOUR if plain else cv2.IMREAD_UNCHANGED
    image = opencv_decode(neutral(data, ORIENTATION, EXTRA_SAMPLES), flags, where)
    if image is None or not _ends_whole(data):
        _explain(data, where)
    whole = _known(image, where)
    if plain:
        return Decoded(whole)
    bands, changes = _three_bands(whole, where)
    pixels, scaled = _eight_bits(bands, where, span)
    return Decoded(np.ascontiguousarray(pixels), changes + scaled)


def _three_bands(image: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """RGB from what OpenCV decodes unchanged: gray, BGR, or BGR with a fourth band."""
    bands = 1 if image.ndim == 2 else image.shape[2]
    if bands == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2), ()
    if bands not in (3, 4):
        raise DataError(f"{where}: has {bands} bands; only gray and RGB images can be read: write 3 bands")
    opaque = bands == 3 or image[..., 3].min() == image[..., 3].max()
    return image[..., 2::-1], () if opaque else (
        "a fourth band that differs between pixels, which is left out",
    )


def _eight_bits(image: np.ndarray, where: str, span: Range | None) -> tuple[UInt8, tuple[str, ...]]:
    """The values scaled to 0..255, and how."""
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False), ()
    low, high = float(image.min()), float(image.max())
    kind = (
        f"{image.dtype.itemsize * 8}-bit {'values' if image.dtype.kind in 'iu' else 'floating-point values'}"
    )
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: holds values that are not finite; write an image of finite numbers")
    changes: tuple[str, ...] = ()
    if span is not None:
        if low < span[0] or high > span[1]:
            changes = (f"{kind} beyond the declared range {span[0]:g}..{span[1]:g}, which are clipped",)
    elif image.dtype == np.uint16:
        bits = next(depth for depth in _DEPTHS if high < 2**depth)
        span = (0.0, 2.0**bits - 1)
        changes = (f"{kind}, scaled by the {bits} bits that are used (0..{span[1]:g})",)
    elif image.dtype.kind == "f" and low >= 0 and high <= 255:
        span = (0.0, 1.0 if high <= 1 else 255.0)
        changes = (f"{kind}, scaled from 0..{span[1]:g}",)
    else:
        raise DataError(
            f"{where}: holds {kind} from {low:g} to {high:g}; say which become black and white, "
            f"e.g. `range: [{math.floor(low)}, {math.ceil(high)}]` in dataset.yaml"
        )
    scaled = (image.astype(np.float64) - span[0]) * (255.0 / (span[1] - span[0]))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8), changes


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
            _explain(data, where)
        whole = _known(label, where)
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
        raise DataError(f"{where}: damaged or truncated ({_short(error)})") from None
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
        raise DataError(
            f"{where}: has transparent pixels; save the mask without alpha, and give what they stand for a "
            "colour of its own (pixels without a class: `ignore: [[R, G, B]]` in dataset.yaml)"
        )
    return mask[..., :3]


def colour_table(data: bytes) -> UInt8 | None:
    """The RGB colours (K x 3) of a palette PNG or TIFF, by index; None for files of another kind."""
    if data.startswith(PNG_SIGNATURE) and data[25] != _PALETTE:
        return None
    # Image.open would refuse sound labels of large images.
    opened = PngImageFile if data.startswith(PNG_SIGNATURE) else Image.open
    with opened(io.BytesIO(data)) as image:
        colours = image.getpalette("RGB") if image.mode == "P" else None
    return None if colours is None else np.array(colours, np.uint8).reshape(-1, 3)


def opencv_decode(data: bytes, flags: int, where: str) -> np.ndarray | None:
    """`cv2.imdecode`: the pixels, or None where OpenCV knows no such image.

    Raises:
        DataError: OpenCV refuses the image, e.g. for the size that a damaged header gives; `where` names it.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(
            f"{where}: damaged, or larger than OpenCV decodes ({error.err or _short(error)})"
        ) from None


def _known(image: np.ndarray | None, where: str) -> np.ndarray:
    if image is None:
        raise DataError(f"{where}: not an image that OpenCV can read")
    return image


def _narrow(label: np.ndarray, where: str) -> UInt8:
    if label.dtype == np.uint16:
        if label.size and label.max() > 255:
            raise DataError(f"{where}: 16-bit label values up to {label.max()}; class indices end at 255")
        label = label.astype(np.uint8)
    if label.dtype != np.uint8 or label.ndim != 2:
        raise DataError(f"{where}: labels decode to {label.dtype} {label.shape}, not to H x W indices")
    return label


def _ends_whole(data: bytes) -> bool:
    """False where the file's end mark is missing; some decoders fill up such an image with gray."""
    if data.startswith(b"\xff\xd8"):
        return data[-64:].rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    if data.startswith(PNG_SIGNATURE):
        return data[-8:-4] == b"IEND"
    return True


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


def _explain(data: bytes, where: str) -> None:
    """Raise with Pillow's reason if it, too, cannot read the file (bytes after the end are no damage)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: does not end as its format does, and is too large to look further ({_short(error)})"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: damaged or truncated ({_short(error)})") from None


def _indices(png: bytes, where: str) -> np.ndarray:
    """The palette's indices, or gray values of few bits stretched to 0..255."""
    try:
        # Image.open would refuse sound labels of large images: OpenCV's limit is six times as high.
        with PngImageFile(io.BytesIO(png)) as image:
            if image.width * image.height > _LARGEST:
                raise DataError(f"{where}: damaged, or larger than images may be ({_LARGEST} pixels)")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: damaged or truncated ({_short(error)})") from None


def _short(error: Exception) -> str:
    return str(error).splitlines()[0].partition(" <_io.BytesIO object")[0][:100]
