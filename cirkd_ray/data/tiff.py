"""Tags of TIFF files that make decoders change pixels: read, and set to what leaves the pixels as stored."""

from __future__ import annotations

from typing import Literal

TIFF = (b"II*\0", b"MM\0*")
"""How a TIFF file starts, in either order of bytes."""
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, ORIENTATION, EXTRA_SAMPLES = 258, 259, 262, 274, 338
_NEUTRAL = {PHOTOMETRIC: {0: 1}, ORIENTATION: dict.fromkeys(range(2, 9), 1), EXTRA_SAMPLES: {1: 0, 2: 0}}
"""Tag -> its values that turn, invert or multiply pixels, and the one that does not."""


def value_of(data: bytes, tag: int) -> int | None:
    """The tag's value in a TIFF file's first picture; None where it has none, or no single 16-bit number."""
    found = _tags(data).get(tag)
    return None if found is None else found[1]


def neutral(data: bytes, *tags: int) -> bytes:
    """A TIFF file whose `tags` change no pixel any more; files of other formats as they are."""
    found, changed = _tags(data), data
    for tag in tags:
        place, value = found.get(tag, (0, -1))
        if value in _NEUTRAL[tag]:
            number = _NEUTRAL[tag][value].to_bytes(2, _byte_order(data))
            changed = changed[:place] + number + changed[place + 2 :]
    return changed


def _byte_order(data: bytes) -> Literal["little", "big"]:
    return "little" if data.startswith(b"II") else "big"


def _tags(data: bytes) -> dict[int, tuple[int, int]]:
    """Tag -> (place, value) of the first picture's tags that are a single 16-bit number."""
    if not data.startswith(TIFF):
        return {}

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], _byte_order(data))

    first = number(4, 4)
    entries = [first + 2 + 12 * k for k in range(number(first, 2))]
    single = [entry for entry in entries if number(entry + 2, 2) == 3 and number(entry + 4, 4) == 1]
    return {number(entry, 2): (entry + 8, number(entry + 8, 2)) for entry in single}
