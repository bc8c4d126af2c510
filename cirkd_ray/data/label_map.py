"""What the values and colours of stored label maps mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import UInt8
from cirkd_ray.errors import DataError

IMPOSSIBLE = -1
"""Entry of an id map for stored values that must not occur."""


class ImpossibleLabels(DataError):
    """A label map holds values that the data set does not have."""


class LabelMap:
    """Stored label value -> class index, by a table of 256 entries.

    Args:
        mapping: stored value -> class index or `IGNORE_LABEL`; every other value is impossible.
        hint: what to do about an impossible value.
    """

    def __init__(self, mapping: Mapping[int, int], hint: str = "") -> None:
        self.hint = f"; {hint}" if hint else ""
        table = np.full(256, IMPOSSIBLE, dtype=np.int16)
        for value, index in mapping.items():
            table[value] = index
        self.table = table.astype(np.uint8)
        self.identity = bool((self.table[table >= 0] == np.arange(256)[table >= 0]).all())
        self.possible = table >= 0
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ~self.possible, [False]]).astype(np.int8)))
        self._impossible = [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]

    def __call__(self, stored: UInt8, where: str) -> UInt8:
        """H x W class indices.

        Raises:
            DataError: a value that must not occur; the message says which and how many.
        """
        for low, high in self._impossible:
            if cv2.countNonZero(cv2.inRange(stored, low, high)):
                raise ImpossibleLabels(f"{where}: {self._complaint(stored)}")
        return stored if self.identity else cv2.LUT(stored, self.table)

    @property
    def digest(self) -> str:
        """A name for the table: equal where the same stored values mean the same."""
        return hashlib.sha256(self.table.tobytes() + self.possible.tobytes()).hexdigest()[:16]

    def named(self, classes: Sequence[str]) -> dict[str, str]:
        """Stored value -> name of its class, or "ignored"."""
        known = ((value, int(self.table[value])) for value in np.flatnonzero(self.possible).tolist())
        return {str(value): _name(index, classes) for value, index in known}

    def _complaint(self, stored: UInt8) -> str:
        counts = np.bincount(stored.ravel(), minlength=256)
        wrong = np.flatnonzero((counts > 0) & ~self.possible)
        shown = some([f"{value} ({counts[value]} pixels)" for value in wrong], 4)
        allowed = _ranges(np.flatnonzero(self.possible).tolist())
        return f"impossible label values {shown}; this data set has {allowed}{self.hint}"


Colour = tuple[int, int, int]
NEAR = 16
"""How far, in each channel, a colour may lie from that of a class to be taken for a damaged one."""


class ColourMap:
    """RGB colour -> class index, for masks that are pictures of the classes' colours.

    Args:
        mapping: colour -> class index or `IGNORE_LABEL`; every other colour is impossible.
        classes: their names, for messages.
    """

    def __init__(self, mapping: Mapping[Colour, int], classes: Sequence[str] = ()) -> None:
        self.mapping = dict(mapping)
        self.classes = tuple(classes)
        codes = {(r << 16) + (g << 8) + b: index for (r, g, b), index in mapping.items()}
        self._codes = np.array(sorted(codes), np.uint32)
        self._indices = np.array([codes[code] for code in sorted(codes)], np.uint8)

    def __call__(self, colours: UInt8, where: str) -> UInt8:
        """H x W class indices of H x W x 3 colours.

        Raises:
            DataError: a colour of no class; the message says which and how many pixels.
        """
        wide = colours.astype(np.uint32)
        codes = (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        if (wrong := self._codes[places] != codes).any():
            values, counts = np.unique(codes[wrong], return_counts=True)
            most = np.argsort(-counts, kind="stable")
            shown = [self._told(int(values[k]), int(counts[k])) for k in most[:4]]
            share = 100 * wrong.mean()
            told, way_on = f"{some(shown)}, {share:.2g} % of all", self._way_on(values[most])
            raise ImpossibleLabels(f"{where}: colours of no class {told}; {way_on}")
        found: UInt8 = self._indices[places]
        return found

    def near(self, colour: Colour) -> Colour | None:
        """The class's colour that is not farther than `NEAR` from a colour, or None."""
        distance, found = min(
            (max(abs(a - b) for a, b in zip(colour, c, strict=True)), c) for c in self.mapping
        )
        return found if distance <= NEAR else None

    def _way_on(self, codes: NDArray[Any]) -> str:
        """What may be wrong with masks of these other colours, the most frequent first."""
        colours = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
        if all((b, g, r) in self.mapping for r, g, b in colours):
            return "each is a colour of `palette` backwards: give that as [red, green, blue]"
        if len(colours) <= len(self.mapping) and not any(map(self.near, colours)):
            return f"where one stands for no class, say so: `ignore: [[{', '.join(map(str, colours[0]))}]]`"
        return "a class's colour must be exact: write masks without anti-aliasing, and never as JPEG"

    def _told(self, code: int, pixels: int) -> str:
        colour = (code >> 16, code >> 8 & 255, code & 255)
        near = self.near(colour)
        whose = "" if near is None else f" near {[*near]} of {_name(self.mapping[near], self.classes)!r}"
        return f"{[*colour]} ({pixels} pixels){whose}"

    def named(self, classes: Sequence[str]) -> dict[str, str]:
        """`colour R,G,B` -> name of its class, or "ignored"."""
        known = self.mapping.items()
        return {f"colour {r},{g},{b}": _name(index, classes) for (r, g, b), index in known}


def _name(index: int, classes: Sequence[str]) -> str:
    return classes[index] if index < len(classes) else "ignored"


def _ranges(values: Sequence[int]) -> str:
    """`0-20, 255` for 0, 1, ..., 20, 255."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def some(names: Sequence[str], count: int = 3) -> str:
    """The first names, and dots where there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
