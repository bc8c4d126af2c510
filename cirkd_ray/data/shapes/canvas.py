"""Camera and canvas: a pinhole view of a street, drawn into an image and its label map at once."""

from __future__ import annotations

from collections.abc import Callable
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
        scale = self.focal / z
        u = (x + self.middle(z)) * scale
        v = (self.height - y) * scale + (self.horizon + self.roll * u)
        points = np.empty((*v.shape, 2))
        points[..., 0] = u + self.centre
        points[..., 1] = v
        return points

    def point(self, x: float, y: float, z: float) -> Points:
        """`project` of one point, without the cost of array arithmetic."""
        scale = self.focal / max(z, NEAR)
        ahead = min(max(z, NEAR), 90.0)
        u = (x + self.slant * ahead + self.bend * ahead * ahead) * scale
        return np.array((self.centre + u, self.horizon + self.roll * u + (self.height - y) * scale))

    def scale(self, z: float) -> float:
        """Pixels a metre at distance z."""
        return self.focal / max(z, NEAR)


class Canvas:
    """An RGB image and its labels.

    What is drawn with `colour` None changes the labels only (such as the air between a wheel's spokes); what
    is drawn with `label` None changes the image only.

    Attributes:
        image: H x W x 3 uint8.
        label: H x W uint8.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.image: UInt8 = np.zeros((height, width, 3), np.uint8)
        self.label: UInt8 = np.zeros((height, width), np.uint8)

    def fill(self, points: Points, colour: Colour | None, label: int | None = None) -> None:
        """A polygon."""
        self._draw(cv2.fillPoly, ([fixed(points)],), colour, label)

    def convex(self, points: Points, colour: Colour | None, label: int | None = None) -> None:
        """A convex polygon; faster than `fill`."""
        self._draw(cv2.fillConvexPoly, (fixed(points),), colour, label)

    def ellipse(self, centre: Any, axes: tuple[float, float], colour: Colour, label: int | None) -> None:
        """A filled ellipse of half axes (x, y)."""
        self.convex(_CIRCLE * axes + centre, colour, label)

    def line(self, points: Points, colour: Colour, thickness: float, label: int | None = None) -> None:
        """A polyline, at least one pixel wide."""
        self._draw(cv2.polylines, ([fixed(points)], False), colour, label, max(1, round(thickness)))

    def _draw(
        self, way: Callable[..., Any], shape: Any, colour: Colour | None, label: int | None, *pen: int
    ) -> None:
        if colour is not None:
            way(self.image, *shape, colour, *pen, cv2.LINE_AA, FRACTION_BITS)
        if label is not None:
            way(self.label, *shape, label, *pen, cv2.LINE_8, FRACTION_BITS)

    def picture(self, texture: UInt8, corners: Points, label: int) -> None:
        """A texture seen in perspective; `corners` go clockwise from its top left."""
        (low_x, low_y), (high_x, high_y) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        left, right = max(int(low_x), 0), min(int(high_x) + 2, self.width)
        top, bottom = max(int(low_y), 0), min(int(high_y) + 2, self.height)
        if left >= right or top >= bottom:
            return
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        target = (corners - (left, top)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        size = (right - left, bottom - top)
        warped = cv2.warpPerspective(
            texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mask = np.zeros(size[::-1], np.uint8)
        cv2.fillConvexPoly(mask, fixed(target), 255, cv2.LINE_8, FRACTION_BITS)
        cv2.copyTo(warped, mask, self.image[top:bottom, left:right])
        self.convex(corners, None, label)

    def stamp(
        self, cutout: UInt8, palette: UInt8, box: tuple[float, float, float, float], label: int
    ) -> None:
        """A cut-out picture in `box` (left, top, width, height in pixels).

        Args:
            cutout: h x w x 2: indices of the palette, and 255 where it is solid, else 0.
            palette: 256 x 3 colours.
        """
        x0, y0, w, h = (round(v) for v in box)
        x1, y1, x2, y2 = max(x0, 0), max(y0, 0), min(x0 + w, self.width), min(y0 + h, self.height)
        if x1 >= x2 or y1 >= y2:
            return
        # Only the part that is on the canvas is scaled.
        rows, columns = cutout.shape[:2]
        top, left = (y1 - y0) * rows // h, (x1 - x0) * columns // w
        bottom, right = max((y2 - y0) * rows // h, top + 1), max((x2 - x0) * columns // w, left + 1)
        shrink = cv2.INTER_AREA if w < columns else cv2.INTER_LINEAR
        part = cv2.resize(cutout[top:bottom, left:right], (x2 - x1, y2 - y1), interpolation=shrink)
        shades, solid = cv2.split(part)
        solid = cv2.threshold(solid, 127, 255, cv2.THRESH_BINARY)[1]
        cut = cv2.LUT(cv2.merge([shades, shades, shades]), palette.reshape(1, 256, 3))
        cv2.copyTo(cut, solid, self.image[y1:y2, x1:x2])
        self.label[y1:y2, x1:x2][solid > 0] = label

    def sees(self, left: float, right: float) -> bool:
        """Whether any of these columns is on the canvas."""
        return right >= 0 and left < self.width


_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def fixed(points: Points) -> Points:
    """Pixel positions as OpenCV wants them for drawing: whole sixteenths."""
    sixteenths: Points = (points * (1 << FRACTION_BITS)).astype(np.int32)
    return sixteenths
