"""Camera and canvas: a pinhole view of a street, drawn into an image and its label map at once."""

from __future__ import annotations

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

    def ellipse(self, centre: Any, axes: tuple[float, float], colour: Colour, label: int | None) -> None:
        """A filled ellipse of half axes (x, y)."""
        self.convex(_CIRCLE * axes + centre, colour, label)

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
        """A texture seen in perspective; `corners` go clockwise from its top left."""
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
        top, bottom = (y1 - y0) * rows // h, max((y2 - y0) * rows // h, (y1 - y0) * rows // h + 1)
        left, right = (x1 - x0) * columns // w, max((x2 - x0) * columns // w, (x1 - x0) * columns // w + 1)
        size = (x2 - x1, y2 - y1)
        shrink = cv2.INTER_AREA if w < columns else cv2.INTER_LINEAR
        shades, solid = cv2.split(cv2.resize(cutout[top:bottom, left:right], size, interpolation=shrink))
        solid = cv2.threshold(solid, 127, 255, cv2.THRESH_BINARY)[1]
        cut = cv2.LUT(cv2.merge([shades, shades, shades]), palette.reshape(1, 256, 3))
        cv2.copyTo(cut, solid, self.image[y1:y2, x1:x2])
        part = self.label[y1:y2, x1:x2]
        part[:] = np.where(solid, np.uint8(label), part)

    def sees(self, left: float, right: float) -> bool:
        """Whether any of these columns is on the canvas."""
        return right >= 0 and left < self.width

    def _bounds(self, corners: Points) -> tuple[int, int, int, int] | None:
        """Top, left, bottom, right of the corners' box inside the canvas; None where nothing of it is."""
        xs, ys = corners[:, 0].tolist(), corners[:, 1].tolist()
        box = (
            max(int(min(ys)), 0),
            max(int(min(xs)), 0),
            min(int(max(ys)) + 2, self.height),
            min(int(max(xs)) + 2, self.width),
        )
        return box if box[0] < box[2] and box[1] < box[3] else None


_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def fixed(points: Points) -> Points:
    """Pixel positions as OpenCV wants them for drawing: whole sixteenths."""
    sixteenths: Points = (points * (1 << FRACTION_BITS)).astype(np.int32)
    return sixteenths
