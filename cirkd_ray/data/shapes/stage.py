"""What every drawing function is given: the canvas, the camera, the light and the scene's random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cirkd_ray.data.shapes.canvas import Camera, Canvas, Colour


class Label(IntEnum):
    """Class indices. Trees, hedges and lawns are plants, traffic lights are signs."""

    ROAD, PAVEMENT, BUILDING, PLANT, SKY, SIGN, PERSON, CAR = range(8)


@dataclass(frozen=True)
class Look:
    """Weather and time of day.

    Attributes:
        ambient: colour of the light, around 1.
        sun: where the sun stands: -1 left, 1 right, 0 hidden or behind.
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
    """The cross-section: half the road's width, and the widths of both pavements and front gardens.

    All in metres; x grows to the right, from the street's middle. A side is -1 (left) or 1 (right).
    """

    half: float
    pavement: tuple[float, float]
    garden: tuple[float, float]

    def kerb(self, side: int) -> float:
        """x of the road's edge."""
        return side * self.half

    def edge(self, side: int) -> float:
        """x of the pavement's outer edge."""
        return side * (self.half + self.pavement[side > 0])

    def front(self, side: int) -> float:
        """x of the houses' fronts."""
        return self.edge(side) + side * self.garden[side > 0]


class Chance:
    """Random numbers one at a time, drawn in blocks: a call of NumPy costs as much as a small drawing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._pool: list[float] = []

    def random(self) -> float:
        """A number in 0 .. 1."""
        if not self._pool:
            self._pool = self.rng.random(2048).tolist()
        return self._pool.pop()

    def below(self, count: int) -> int:
        """A whole number in 0 .. count - 1."""
        return int(self.random() * count)

    def uniform(self, low: float, high: float) -> float:
        """A number in low .. high."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def count(self, mean: float) -> int:
        """A Poisson number: exponential waiting times that fit into 1."""
        number, left = 0, mean + math.log(max(self.random(), 1e-12))
        while left > 0:
            number, left = number + 1, left + math.log(max(self.random(), 1e-12))
        return number

    def vary(self, colour: Colour, spread: float) -> Colour:
        """A colour near `colour`: its brightness varies by `spread`, each channel by a third of that."""
        shift, third = self.uniform(-spread, spread), spread / 3
        r, g, b = (min(255.0, max(0.0, c + shift + self.uniform(-third, third))) for c in colour)
        return r, g, b

    def either(self, one: Colour, probability: float, other: Colour) -> Colour:
        """One of two colours, the first with this probability."""
        return one if self.chance(probability) else other

    def pick(self, colours: Sequence[Colour], spread: float = 14.0) -> Colour:
        """One of the colours, varied."""
        return self.vary(colours[self.below(len(colours))], spread)


@dataclass(frozen=True)
class Stage:
    """A scene in the making."""

    canvas: Canvas
    camera: Camera
    look: Look
    street: Street
    draw: Chance

    def shows(self, size: float, column: float, reach: float, smallest: float = 0.02) -> bool:
        """Whether to draw a thing that is `size` pixels large and reaches this far from its column.

        Not if it is smaller than the share `smallest` of the image's width, or beside the image.
        """
        return size >= smallest * self.canvas.width and self.canvas.sees(column - reach, column + reach)

    def tint(self, colour: Colour, z: float, facing: float = 0.0) -> Colour:
        """`colour` in this light at distance z; `facing` is -1 for a surface that looks left, 1 for right."""
        look = self.look
        lit = 1.0 + look.strength * facing * look.sun
        fade = math.exp(-look.density * max(z, 0.0))
        parts = zip(colour, look.ambient, look.haze, strict=True)
        r, g, b = (min(255.0, c * light * lit) * fade + haze * (1.0 - fade) for c, light, haze in parts)
        return r, g, b
