"""What an image file says about itself before its pixels: size, kind and orientation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cirkd_ray.data.base import UInt8

_ORIENTATION, _WIDTH, _HEIGHT, _BITS = 0x0112, 256, 257, 258
_EIGHT_BITS = ("JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB")


class Header(NamedTuple):
    """Of an image file.

    Attributes:
        size: (height, width) of the pixels as stored.
        mode: their kind, in Pillow's words: "RGB", "L", "I;16", ...
        orientation: how a camera was held, 1..8 (EXIF): 1 is upright, 5 and above swap height and width.
        palette: its colours as stored, of a file that has one.
    """

    size: tuple[int, int]
    mode: str
    orientation: int = 1
    palette: bytes = b""

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) that the image would have if its orientation were applied."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])


def read_header(source: bytes | Path) -> Header | None:
    """The header of a file or of its content; None where Pillow does not know it. No pixel is decoded."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            if image.format == "TIFF":  # Pillow gives the size after turning
                tags = image.tag_v2  # type: ignore[attr-defined]
                width, height = tags[_WIDTH], tags[_HEIGHT]
            known = isinstance(orientation, int) and 1 <= orientation <= 8
            held = orientation if known else 1
            palette = bytes(image.palette.getdata()[1]) if image.mode == "P" and image.palette else b""
            return Header((int(height), int(width)), image.mode, held, palette)
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError):
        return None


def has_more_bits(source: bytes | Path) -> bool:
    """Whether an image's values may have more than 8 bits; no pixel is decoded."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format == "TIFF":
                bits = image.tag_v2.get(_BITS, 1)  # type: ignore[attr-defined]
                return bool(np.max(bits) > 8)
            if image.format not in ("PNG", "PPM"):
                return image.format not in _EIGHT_BITS
            arguments = image.tile[0][3]  # of Pillow's decoder: "RGB;16B", or ("RGB", 65535)
            kind, *top = [arguments or ""] if isinstance(arguments, str | None) else arguments
            return ";16" in kind or (image.format == "PPM" and max(top, default=0) > 255)
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, Image.DecompressionBombError):
        return True  # OpenCV may know it


def upright(image: UInt8, orientation: int) -> UInt8:
    """The pixels turned and mirrored as an orientation tag (1..8) says."""
    swapped = np.swapaxes(image, 0, 1)
    forms = {
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: swapped,
        6: swapped[:, ::-1],
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }
    return np.ascontiguousarray(forms.get(orientation, image))
