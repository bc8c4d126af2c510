"""Decoding of images: a file that was cut short is an error.

PNG files carry checksums in all their parts. JPEG, WebP, TIFF, BMP, GIF and PNM carry none: one that is
damaged before its end may decode to wrong values, which nothing tells.
"""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.tiff import EXTRA_SAMPLES, ORIENTATION, neutral
from cirkd_ray.errors import DataError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Ends of the names of files that are read as images."""
GIF, _WITH_ALPHA = b"GIF8", (b"\4", b"\6")
# A camera's orientation tag is applied nowhere: labels are drawn on the pixels as stored.
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_DEPTHS = (8, 10, 12, 14, 16)
Range = tuple[float, float]
"""The stored values that become 0 and 255."""


class Decoded(NamedTuple):
    """An image, and what reading changed in it.

    Attributes:
        pixels: H x W x 3 uint8, RGB.
        changes: what the user should know, the same text for images of one kind; empty for plain 8-bit RGB.
        top: the highest stored value of an image of more than 8 bits, whose values were scaled.
    """

    pixels: UInt8
    changes: tuple[str, ...] = ()
    top: float | None = None


class BeyondRange(DataError):
    """An image holds values outside the range that was measured on others of its set.

    Args:
        text: the message.
        enough: a range that holds its values.
        top: the highest of them.
    """

    def __init__(self, text: str, enough: Range = (0.0, 0.0), top: float = 0.0) -> None:
        super().__init__(text)
        self.enough, self.top = enough, top


def decode_image(data: bytes, where: str, span: Range | None = None) -> UInt8:
    """An H x W x 3 uint8 RGB image from JPEG, PNG, WebP, GIF or a format of OpenCV, told by its content.

    This is the one way in which images are read. Pixels stay where they are stored: a camera's orientation
    tag (EXIF) is not applied. Gray images get three equal channels. A fourth band is dropped, and never
    multiplies the others; so is the transparency that PNG and GIF files declare for some of their colours.
    8-bit values stay as they are; others are scaled to 8 bits, `span` to 0..255, rounded, and what lies
    outside is clipped. Without a `span`, 16-bit values are scaled by the bits that the image uses (8, 10, 12,
    14 or 16), floating-point values from 0..1, or from 0..255 where one is above 1.

    Args:
        data: the file's content.
        where: names it in errors.
        span: the range of values of more than 8 bits.

    Raises:
        DataError: not an image, truncated, damaged as far as its format shows it, or of values whose range
            must be declared; `where` names it.
    """
    return read_image(data, where, span).pixels


def read_image(data: bytes, where: str, span: Range | None = None, measured: bool = False) -> Decoded:
    """`decode_image`, with what it changed.

    Args:
        data, where, span: as of `decode_image`.
        measured: the span was not declared but measured on other images of the set; None, where these have
            8 bits.

    Raises:
        BeyondRange: values lie outside the measured span.
    """
    whole, changes, plain = _stored(data, where)
    if plain:
        return Decoded(whole)
    if whole.dtype == np.uint8:
        return Decoded(np.ascontiguousarray(whole, np.uint8), changes)
    pixels, scaled, top = _eight_bits(whole, where, span, measured)
    return Decoded(np.ascontiguousarray(pixels), changes + scaled, top)


def bounds(data: bytes, where: str) -> tuple[np.dtype[Any], float, float]:
    """The type of an image's stored values, and the lowest and the highest one."""
    values = _stored(data, where)[0]
    return values.dtype, float(values.min()), float(values.max())


def _stored(data: bytes, where: str) -> tuple[Any, tuple[str, ...], bool]:
    """The three bands of an image as stored, what was left out, and whether it is 8-bit RGB without more."""
    if not data:
        raise DataError(f"{where}: the file is empty")
    chunk = _transparency(data)
    plain = data.startswith(b"\xff\xd8") or (
        data.startswith(PNG_SIGNATURE)
        and data[24:25] != b"\x10"
        and data[25:26] not in _WITH_ALPHA
        and chunk is None
    )
    flags = _COLOUR if plain else cv2.IMREAD_UNCHANGED
    image = (
        _gif(data, where)
        if data.startswith(GIF)
        else opencv_decode(neutral(data, ORIENTATION, EXTRA_SAMPLES), flags, where)
    )
    if image is None or not _ends_whole(data):
        explain(data, where)
    whole = known(image, where)
    if plain:
        return whole, (), True
    if chunk is not None and whole.ndim == 2:
        whole = _with_alpha(whole, data, chunk)
    return *_three_bands(whole, where), False


def _transparency(data: bytes) -> bytes | None:
    """The chunk of a PNG file that declares some of its colours transparent; None where it has none."""
    start = len(PNG_SIGNATURE)
    while data.startswith(PNG_SIGNATURE) and (kind := data[start + 4 : start + 8]) not in (b"", b"IDAT"):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if kind == b"tRNS":
            return data[start + 8 : end]
        start = end + 4
    return None


def _with_alpha(gray: np.ndarray, data: bytes, chunk: bytes) -> np.ndarray:
    """A gray PNG with the band that its transparent value stands for, which OpenCV leaves out."""
    depth, value = data[24], int.from_bytes(chunk[:2], "big")
    top = np.iinfo(gray.dtype).max
    stored = value * (top // (2**depth - 1)) if depth < 8 else value
    alpha = np.where(gray == stored, 0, top).astype(gray.dtype)
    return np.dstack([gray, gray, gray, alpha])


def _gif(data: bytes, where: str) -> np.ndarray:
    """The one picture of a GIF file, as OpenCV would give it; that one turns transparent pixels black."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pictures = getattr(image, "n_frames", 1)
            if pictures == 1:
                return np.asarray(image.convert("RGBA"))[..., [2, 1, 0, 3]]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: damaged or truncated ({short(error)})") from None
    raise DataError(f"{where}: holds {pictures} pictures; save the one that is meant as PNG")


def _three_bands(image: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """RGB from what OpenCV decodes unchanged: gray, BGR, or BGR with a fourth band."""
    bands = 1 if image.ndim == 2 else image.shape[2]
    if bands == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2), ()
    if bands not in (3, 4):
        raise DataError(f"{where}: has {bands} bands; only gray and RGB images can be read: write 3 bands")
    opaque = bands == 3 or image[..., 3].min() == image[..., 3].max()
    return image[..., 2::-1], () if opaque else (
        "a fourth band (transparency) that differs between pixels, which is left out",
    )


def _eight_bits(
    image: np.ndarray, where: str, span: Range | None, measured: bool
) -> tuple[UInt8, tuple[str, ...], float]:
    """The values scaled to 0..255, what the user should know of it, and the highest value."""
    low, high, kind = float(image.min()), float(image.max()), kind_of(image.dtype)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: holds values that are not finite; write an image of finite numbers")
    changes: tuple[str, ...] = ()
    natural = natural_range(image.dtype, low, high)
    if measured and (span is None or low < span[0] or high > span[1]):
        others = "other images of the set have 8 bits" if span is None else f"beyond {shown(span)} of the set"
        enough = natural or (low, high)
        text = f"holds {kind} from {low:g} to {high:g}, {others}; write {declare(enough)}"
        raise BeyondRange(f"{where}: {text}", enough, high)
    if span is None:
        if natural is None:
            how = f"say which become black and white, e.g. {declare((low, high))}"
            raise DataError(f"{where}: holds {kind} from {low:g} to {high:g}; {how}")
        span, changes = natural, (f"{kind}, scaled from {shown(natural)}",)
    elif low < span[0] or high > span[1]:
        changes = (f"{kind} beyond the range {shown(span)}, which are clipped",)
    scaled = (image.astype(np.float64) - span[0]) * (255.0 / (span[1] - span[0]))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8), changes, high


def natural_range(kind: np.dtype[Any], low: float, high: float) -> Range | None:
    """The range that values of more than 8 bits are scaled from where none is declared.

    That of the bits that unsigned 16-bit values use (8, 10, 12, 14 or 16), and 0..1 or 0..255 of
    floating-point values; None where nothing is usual.
    """
    if kind == np.uint16:
        return 0.0, 2.0 ** next(depth for depth in _DEPTHS if high < 2**depth) - 1
    if kind.kind == "f" and low >= 0 and high <= 255:
        return 0.0, 1.0 if high <= 1 else 255.0
    return None


def kind_of(kind: np.dtype[Any]) -> str:
    """`16-bit values`."""
    return f"{kind.itemsize * 8}-bit {'values' if kind.kind in 'iu' else 'floating-point values'}"


def shown(span: Range) -> str:
    """`0..4095`."""
    return f"{span[0]:g}..{span[1]:g}"


def declare(span: Range) -> str:
    """The line that declares a range."""
    return f"`range: [{math.floor(span[0])}, {math.ceil(span[1])}]` in dataset.yaml"


def opencv_decode(data: bytes, flags: int, where: str) -> np.ndarray | None:
    """`cv2.imdecode`: the pixels, or None where OpenCV knows no such image.

    Raises:
        DataError: OpenCV refuses the image, e.g. for the size that a damaged header gives; `where` names it.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(
            f"{where}: damaged, or larger than OpenCV decodes ({error.err or short(error)})"
        ) from None


def known(image: np.ndarray | None, where: str) -> np.ndarray:
    if image is None:
        raise DataError(f"{where}: not an image that OpenCV can read")
    return image


def _ends_whole(data: bytes) -> bool:
    """False where the file's end mark is missing; some decoders fill up such an image with gray."""
    if data.startswith(b"\xff\xd8"):
        return data[-64:].rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    if data.startswith(PNG_SIGNATURE):
        return data[-8:-4] == b"IEND"
    return True


def explain(data: bytes, where: str) -> None:
    """Raise with Pillow's reason if it, too, cannot read the file (bytes after the end are no damage)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: does not end as its format does, and is too large to look further ({short(error)})"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: damaged or truncated ({short(error)})") from None


def short(error: Exception) -> str:
    return str(error).splitlines()[0].partition(" <_io.BytesIO object")[0][:100]
