"""Palette files as label maps: whether indices or colours say which class is meant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.label_map import Colour, ColourMap, ImpossibleLabels, LabelMap, some
from cirkd_ray.data.masks import TRANSPARENT

Used = dict[int, Colour]
"""The colours of the indices that occur in a palette file."""
_MEND = "save the mask as RGB in the colours of `palette`, or as gray class indices"


def used_colours(stored: UInt8, table: UInt8) -> Used:
    """The colours of the indices that occur in a file; black for those beyond the table's end."""
    found = np.flatnonzero(np.bincount(stored.ravel(), minlength=256)).tolist()
    return {k: _colour(table, k) for k in found}


def meant_by_colours(
    stored: UInt8, table: UInt8, labels: LabelMap, colours: ColourMap, where: str
) -> UInt8 | None:
    """Class by index of a palette file of a data set whose classes have declared colours.

    Tools order the colours of a palette as they like, so that where a file's colours are those of classes,
    they decide. Where they are not, the palette is for display alone.

    Args:
        stored: H x W indices.
        table: K x 4 colours with transparency, by index.
        labels, colours: what indices and colours mean.
        where: the file, for messages.

    Returns:
        256 class indices; None where the stored indices decide.

    Raises:
        ImpossibleLabels: the colours decide, but some of the used ones are of no class, or near to one.
    """
    used = used_colours(stored, table)
    meant = {k: colours.mapping[colour] for k, colour in used.items() if colour in colours.mapping}
    if len(meant) == len(used) and max(used) < len(table):
        if len({int(table[k][3]) for k in used}) > 1:
            raise ImpossibleLabels(f"{where}: {TRANSPARENT}")
        by_index = np.zeros(256, np.uint8)
        by_index[list(meant)] = list(meant.values())
        return by_index
    differing = [k for k, index in meant.items() if _says_otherwise(labels, k, index)]
    if differing:
        others = some([str(k) for k in used if k not in meant])
        what = f"index {differing[0]} has the colour of another class, and those of {others} are of none"
        raise ImpossibleLabels(f"{where}: {what}; {_MEND}")
    near = _near(table, colours)
    for k, colour in used.items():
        if colour in near and _says_otherwise(labels, k, colours.mapping[near[colour]]):
            what = f"index {k} has the colour {[*colour]}, near {[*near[colour]]} of another class"
            raise ImpossibleLabels(f"{where}: {what}; {_MEND}")
    return None


def _near(table: UInt8, colours: ColourMap) -> dict[Colour, Colour]:
    """The colours of a file's palette -> those of classes that they are near to.

    Empty where two are near to the same one, as in a ramp of grays: such a palette means no classes.
    """
    near = {colour: colours.near(colour) for colour in {_colour(table, k) for k in range(len(table))}}
    found = {colour: other for colour, other in near.items() if other is not None}
    return found if len(set(found.values())) == len(found) else {}


def _colour(table: UInt8, index: int) -> Colour:
    red, green, blue = table[index][:3].tolist() if index < len(table) else (0, 0, 0)
    return red, green, blue


def _says_otherwise(labels: LabelMap, stored: int, index: int) -> bool:
    return not labels.possible[stored] or index != labels.table[stored]


class Palettes:
    """The colours that indices have in the label maps of a data set that are read by index."""

    def __init__(self) -> None:
        self._told = False
        self._seen: dict[int, dict[Colour, tuple[int, str]]] = {}

    def add(self, name: str, used: Mapping[int, Colour]) -> None:
        """Count the colours of a file."""
        for index, colour in used.items():
            colours = self._seen.setdefault(index, {})
            count, first = colours.get(colour, (0, name))
            colours[colour] = count + 1, first

    @property
    def usual(self) -> Used:
        """The most frequent colour of each index."""
        return {k: max(colours, key=lambda one: colours[one][0]) for k, colours in sorted(self._seen.items())}

    def differing(self) -> str:
        """The first index that has several colours, with files; empty where there is none, or it was told."""
        several = [k for k, colours in sorted(self._seen.items()) if len(colours) > 1]
        if not several or self._told:
            return ""
        self._told = True
        one, two = list(self._seen[several[0]].items())[:2]
        shown = f"index {several[0]} is {[*one[0]]} for {one[1][1]} and {[*two[0]]} for {two[1][1]}"
        rest = len(several) - 1
        more = f", and so on for {rest} more" if rest else ""
        return f"label files have palettes that differ: {shown}{more}"
