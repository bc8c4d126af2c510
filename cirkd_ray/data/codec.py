"""Decoding of images and label maps: a file that was cut short is an error, and no label is ever guessed.

Labels are PNG files, whose parts carry checksums: any damage to them is found. JPEG, WebP, TIFF and BMP carry
none: an image of theirs that is damaged before its end may decode to wrong colours, which nothing tells.
"""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cirkd_ray.data.base import UInt8
from cirkd_ray.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GRAY = 3, 0
_PNG_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_LARGEST = 2**30
"""Pixels of the largest image that OpenCV decodes."""
_UPRIGHT = cv2.IMREAD_COLOR_RGB
# Labels are drawn on the pixels as stored, so a camera's orientation tag must not turn the image under them.
_COLOUR = _UPRIGHT | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(data: bytes, where: str, upright: bool = False) -> UInt8:
    """An H x W x 3 uint8 RGB image from JPEG, PNG, WebP or another format of OpenCV, told by its content.

    Gray images get three equal channels, alpha is dropped, 16 bits are cut to the upper 8.

    Args:
        data: the file's content.
        where: names it in errors.
        upright: turn the pixels as the camera's orientation tag (EXIF) says; for photos without labels.

    Raises:
        DataError: not an image, truncated, or damaged as far as its format shows it; `where` names it.
    """
    if not data:
        raise DataError(f"{where}: the file is empty")
    image = opencv_decode(data, _UPRIGHT if upright else _COLOUR, where)
    if image is not None and _ends_whole(data):
        return image
    _explain(data, where)
    return _known(image, where)


def decode_label(data: bytes, where: str) -> UInt8:
    """An H x W uint8 map of the stored indices.

    Palette PNGs give the palette's indices (OpenCV would give colours turned to gray), gray PNGs of 1, 2 and
    4 bits the stored numbers (decoders stretch them to 0..255), 16-bit ones their value where it fits.

    Raises:
        DataError: damaged, truncated, or holding colours instead of indices; `where` names it.
    """
    if not data.startswith(PNG_SIGNATURE) or len(data) < 33:
        raise DataError(f"{where}: not a PNG file; labels must be PNG maps of class indices")
    pixels = _compressed_pixels(data, where)
    depth, colour = data[24], data[25]
    if colour == _GRAY and depth in (8, 16):
        label = opencv_decode(data, cv2.IMREAD_UNCHANGED, where)
        if label is None:
            _explain(data, where)
        return _narrow(_known(label, where), where)
    if colour not in (_PALETTE, _GRAY):
        kind = _PNG_COLOURS.get(colour, f"colour type {colour}")
        raise DataError(f"{where}: holds {kind} values; labels must be gray or palette PNGs of class indices")
    indices = _indices(data, where)
    _require_all_rows(data, pixels, where)
    if colour == _GRAY:
        indices = indices.astype(np.uint8) // (1 if depth == 1 else 255 // (2**depth - 1))
    return np.ascontiguousarray(indices, dtype=np.uint8)


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
