"""Camera and canvas: a pinhole view of a street, drawn into an image and its label map at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import UInt8

Points = NDArray[Any]
Colour = tuple[float, float, float]
FRACTION_BITS = 4
"""Polygon corners are given to OpenCV in sixteenths of a pixel."""
NEAR = 1.2
"""Nothing is drawn closer to the camera than this, in metres."""


@dataclass(frozen=True)
class Camera:
    """A camera above the road that looks along it.

    Attributes:
        focal: focal length in pixels.
        centre: column of the vanishing point.
        horizon: row of the horizon at that column.
        height: metres above the ground.
        roll: slope of the horizon.
        bend, slant: the street's middle lies at x = slant z + bend z^2.
    """

    focal: float
    centre: float
    horizon: float
    height: float
    roll: float
    bend: float
    slant: float

    def middle(self, z: Any) -> Any:
        """Where the middle of the street lies at distance z, in metres to the right."""
        z = np.minimum(z, 90.0)
        return self.slant * z + self.bend * z * z

    def project(self, x: Any, y: Any, z: Any) -> Points:
        """Pixel positions (... x 2) of points x metres right of the street's middle, y up, z ahead."""
        z = np.maximum(z, NEAR)
        u = self.focal * (x + self.middle(z)) / z
        v = self.focal * (self.height - y) / z
        return np.stack(np.broadcast_arrays(self.centre + u, self.horizon + v + self.roll * u), axis=-1)

    def scale(self, z: float) -> float:
        """Pixels a metre at distance z."""
        return self.focal / max(z, NEAR)


class Canvas:
    """An RGB image and its labels.

    Attributes:
        image: H x W x 3 uint8.
        label: H x W uint8.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.image: UInt8 = np.zeros((height, width, 3), np.uint8)
        self.label: UInt8 = np.zeros((height, width), np.uint8)

    def fill(self, points: Points, colour: Colour, label: int | None) -> None:
        """A polygon; with label None it is drawn into the image only."""
        corners = fixed(points)
        cv2.fillPoly(self.image, [corners], colour, cv2.LINE_AA, FRACTION_BITS)
        if label is not None:
            cv2.fillPoly(self.label, [corners], label, cv2.LINE_8, FRACTION_BITS)

    def convex(self, points: Points, colour: Colour, label: int | None) -> None:
        """A convex polygon; faster than `fill`."""
        corners = fixed(points)
        cv2.fillConvexPoly(self.image, corners, colour, cv2.LINE_AA, FRACTION_BITS)
        if label is not None:
            cv2.fillConvexPoly(self.label, corners, label, cv2.LINE_8, FRACTION_BITS)

    def ellipse(
        self, centre: Sequence[float], axes: Sequence[float], colour: Colour, label: int | None
    ) -> None:
        """A filled ellipse of half axes (x, y)."""
        self.convex(np.asarray(centre) + _CIRCLE * np.asarray(axes), colour, label)

    def line(self, points: Points, colour: Colour, thickness: float, label: int | None) -> None:
        """A polyline, at least one pixel wide."""
        corners, width = [fixed(points)], max(1, round(thickness))
        cv2.polylines(self.image, corners, False, colour, width, cv2.LINE_AA, FRACTION_BITS)
        if label is not None:
            cv2.polylines(self.label, corners, False, label, width, cv2.LINE_8, FRACTION_BITS)

    def mark(self, points: Points, label: int) -> None:
        """Label a polygon whose inside stays as it is, such as a wheel between its spokes."""
        cv2.fillPoly(self.label, [fixed(points)], label, cv2.LINE_8, FRACTION_BITS)

    def picture(self, texture: UInt8, corners: Points, label: int | None) -> None:
        """A texture seen in perspective; `corners` are its top left, top right, bottom right and bottom left."""
        box = self._bounds(corners)
        if box is None:
            return
        top, left, bottom, right = box
        size = (right - left, bottom - top)
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        target = (corners - (left, top)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        warped = cv2.warpPerspective(
            texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillConvexPoly(mask, fixed(target), 255, cv2.LINE_8, FRACTION_BITS)
        cv2.copyTo(warped, mask, self.image[top:bottom, left:right])
        if label is not None:
            cv2.fillConvexPoly(self.label, fixed(corners), label, cv2.LINE_8, FRACTION_BITS)

    def stamp(
        self, colours: UInt8, mask: UInt8, left: float, top: float, size: tuple[float, float], label: int
    ) -> None:
        """A cut-out picture scaled to `size` (width, height) pixels at a position; `mask` is 255 where it is solid."""
        x0, y0 = round(left), round(top)
        w, h = max(1, round(size[0])), max(1, round(size[1]))
        x1, y1, x2, y2 = max(x0, 0), max(y0, 0), min(x0 + w, self.width), min(y0 + h, self.height)
        if x1 >= x2 or y1 >= y2:
            return
        inside = np.s_[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
        shrink = cv2.INTER_AREA if w < colours.shape[1] else cv2.INTER_LINEAR
        solid = np.ascontiguousarray(
            (cv2.resize(mask, (w, h), interpolation=shrink)[inside] > 127) * np.uint8(255)
        )
        cut = np.ascontiguousarray(cv2.resize(colours, (w, h), interpolation=shrink)[inside])
        cv2.copyTo(cut, solid, self.image[y1:y2, x1:x2])
        self.label[y1:y2, x1:x2][solid > 0] = label

    def _bounds(self, corners: Points) -> tuple[int, int, int, int] | None:
        """Top, left, bottom, right of the corners' box inside the canvas; None where nothing of it is."""
        left, top = np.floor(corners.min(axis=0)).astype(int)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
        box = max(top, 0), max(left, 0), min(bottom, self.height), min(right, self.width)
        return box if box[0] < box[2] and box[1] < box[3] else None


_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def fixed(points: Points) -> Points:
    """Pixel positions as OpenCV wants them for drawing: whole sixteenths, within what its integers can hold."""
    return np.clip(points * (1 << FRACTION_BITS), -160_000, 160_000).astype(np.int32)
