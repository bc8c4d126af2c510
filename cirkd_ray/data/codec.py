"""Decoding of images and label maps: whole or an error, never half an image, never a guessed label."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from cirkd_ray.data.base import UInt8
from cirkd_ray.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GRAY = 3, 0
_PNG_COLOURS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
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
        DataError: not an image, damaged or truncated; `where` names it.
    """
    if not data:
        raise DataError(f"{where}: the file is empty")
    image: UInt8 | None = cv2.imdecode(np.frombuffer(data, np.uint8), _UPRIGHT if upright else _COLOUR)
    if image is None or not _ends_whole(data):
        _explain(data, where)
    if image is None:
        raise DataError(f"{where}: not an image that OpenCV can read")
    return image


def decode_label(data: bytes, where: str) -> UInt8:
    """An H x W uint8 map of the stored indices.

    Palette PNGs give the palette's indices (OpenCV would give colours turned to gray), gray PNGs of 1, 2 and
    4 bits the stored numbers (decoders stretch them to 0..255), 16-bit ones their value where it fits.

    Raises:
        DataError: damaged, truncated, or holding colours instead of indices; `where` names it.
    """
    if not data.startswith(PNG_SIGNATURE) or len(data) < 33:
        raise DataError(f"{where}: not a PNG file; labels must be PNG maps of class indices")
    depth, colour = data[24], data[25]
    if colour == _GRAY and depth in (8, 16):
        label = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if label is None:
            _explain(data, where)
            raise DataError(f"{where}: not an image that OpenCV can read")
        return _narrow(np.asarray(label), where)
    if colour not in (_PALETTE, _GRAY):
        kind = _PNG_COLOURS.get(colour, f"colour type {colour}")
        raise DataError(f"{where}: holds {kind} values; labels must be gray or palette PNGs of class indices")
    indices = _pil(data, where)
    if colour == _GRAY:
        indices = indices.astype(np.uint8) // (1 if depth == 1 else 255 // (2**depth - 1))
    return np.ascontiguousarray(indices, dtype=np.uint8)


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


def _explain(data: bytes, where: str) -> None:
    """Raise with Pillow's reason if it, too, cannot read the file (bytes after the end are no damage)."""
    _pil(data, where)


def _pil(data: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: damaged or truncated ({_short(error)})") from None


def _short(error: Exception) -> str:
    return (
        str(error)
        .splitlines()[0]
        .replace(" <_io.BytesIO object", " the file <")[:100]
        .split(" the file <")[0]
    )
