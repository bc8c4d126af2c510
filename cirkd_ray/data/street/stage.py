"""What every drawing function is given: the canvas, the camera, the light and the scene's random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cirkd_ray.data.street.canvas import Camera, Canvas, Colour


class Label(IntEnum):
    """Class indices; `VOID` is ignored."""

    ROAD = 0
    PAVEMENT = 1
    BUILDING = 2
    FENCE = 3
    POLE = 4
    SIGN = 5
    TREE = 6
    GRASS = 7
    SKY = 8
    PERSON = 9
    CAR = 10
    BICYCLE = 11
    VOID = 255


@dataclass(frozen=True)
class Look:
    """Weather and time of day.

    Attributes:
        ambient: colour of the light, around 1.
        sun: side that the sun stands on: -1 left, 1 right, 0 hidden or behind.
        strength: how much sunlit and shaded sides differ, 0..0.5.
        haze: colour that distance fades to.
        density: haze a metre.
        sky: colours at the zenith and at the horizon.
        clouds: amplitude of the clouds in grey levels.
        season: colour of foliage.
    """

    ambient: Colour
    sun: int
    strength: float
    haze: Colour
    density: float
    sky: tuple[Colour, Colour]
    clouds: float
    season: Colour


@dataclass(frozen=True)
class Street:
    """The cross-section: half the road's width, and the width of each side's pavement and front gardens (metres)."""

    half: float
    pavement: tuple[float, float]
    garden: tuple[float, float]

    def kerb(self, side: int) -> float:
        """x of the road's edge on the left (-1) or right (1)."""
        return side * self.half

    def edge(self, side: int) -> float:
        """x of the pavement's outer edge."""
        return side * (self.half + self.pavement[side > 0])

    def front(self, side: int) -> float:
        """x of the houses' fronts."""
        return self.edge(side) + side * self.garden[side > 0]


@dataclass(frozen=True)
class Stage:
    """A scene in the making."""

    canvas: Canvas
    camera: Camera
    look: Look
    street: Street
    rng: np.random.Generator

    def tint(self, colour: Colour, z: float, facing: float = 0.0) -> Colour:
        """`colour` in this light at distance z; `facing` is -1 for a surface that looks left, 1 for right."""
        look = self.look
        lit = 1.0 + look.strength * facing * look.sun
        fade = math.exp(-look.density * z)
        r, g, b = (
            min(255.0, c * a * lit) * fade + h * (1.0 - fade)
            for c, a, h in zip(colour, look.ambient, look.haze, strict=True)
        )
        return r, g, b

    def uniform(self, low: float, high: float) -> float:
        """A number in low .. high."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def vary(self, colour: Colour, spread: float) -> Colour:
        """A colour near `colour`: its brightness varies by `spread`, each channel by a third of that."""
        shift = self.uniform(-spread, spread)
        r, g, b = (min(255.0, max(0.0, c + shift + self.uniform(-spread, spread) / 3)) for c in colour)
        return r, g, b
