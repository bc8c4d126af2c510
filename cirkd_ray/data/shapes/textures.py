"""Banks of noise and foliage, made once a process from fixed seeds, and facades, made for each building."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.shapes.canvas import Colour
from cirkd_ray.data.shapes.stage import Chance

Field = NDArray[np.float32]
Tint = Callable[[Colour], Colour]
TILE = 256
_KINDS = {
    "grain": (0.6, 0.0, 1),  # asphalt, plaster
    "leaves": (0.9, 0.03, 2),  # foliage, grass
    "clouds": (2.2, 0.0, 3),  # large soft patches
    "sensor": (0.0, 0.0, 4),  # white
}
"""Kinds of noise: by which power of the frequency it falls, its lowest frequency, its seed."""


@functools.cache
def noise(kind: str) -> Field:
    """A 512 x 512 field (see `_KINDS`) of zero mean and unit deviation that repeats every 256 pixels."""
    exponent, low, seed = _KINDS[kind]
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((TILE, TILE)))
    spectrum *= frequency**-exponent * (frequency >= low)
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    return np.tile((field / field.std()).astype(np.float32), (2, 2))


def noise_window(kind: str, draw: Chance, height: int, width: int, grain: float = 1.0) -> Field:
    """A random window of a field; each pixel of the field becomes `grain` pixels."""
    h, w = max(4, round(height / grain)), max(4, round(width / grain))
    y, x = draw.below(TILE), draw.below(TILE)
    field = noise(kind)
    if max(h, w) > TILE:
        field = np.tile(field, (-(-h // TILE), -(-w // TILE)))
    window = field[y : y + h, x : x + w]
    return window if (h, w) == (height, width) else cv2.resize(window, (width, height))


CROWNS = 24
_CROWN_SIZE = 72
SHADE_SCALE = 1.6 / 255


@functools.cache
def crown(number: int) -> UInt8:
    """Foliage number 0 .. `CROWNS` - 1, lit from the upper left.

    Returns:
        h x w x 2: brightness in units of `SHADE_SCALE`, and the mask (0 or 255).
    """
    draw = Chance(np.random.default_rng(1000 + number))
    grid = np.linspace(-1, 1, _CROWN_SIZE, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    height = np.full_like(x, -1.0)
    for _ in range(5 + draw.below(5)):
        cx, cy, radius = draw.uniform(-0.5, 0.5), draw.uniform(-0.5, 0.5), draw.uniform(0.3, 0.55)
        height = np.maximum(height, 1 - np.hypot(x - cx, (y - cy) * draw.uniform(0.9, 1.4)) / radius)
    rough = noise_window("leaves", draw, _CROWN_SIZE, _CROWN_SIZE, 1.2)
    mask = (height + 0.16 * rough) > 0.05
    light = np.clip(0.95 + 0.25 * (-0.5 * x - 0.8 * y) + 0.2 * height + 0.16 * rough, 0.35, 1.6)
    return np.stack([light / SHADE_SCALE, mask * 255.0], axis=-1).astype(np.uint8)


@functools.cache
def _grid(cell: int, sill: int, side: int, floors: int, bays: int) -> UInt8:
    """255 where a house front of `cell` x `cell` pixel cells has windows."""
    one = np.zeros((cell, cell), np.uint8)
    one[sill : cell - cell // 4, side : cell - side] = 255
    return np.tile(one, (floors, bays))


def facade(draw: Chance, floors: int, bays: int, wall: Colour, glass: Colour, cell: int, tint: Tint) -> UInt8:
    """A house front of `floors` rows and `bays` columns of windows over a ground floor of doors and shops.

    Args:
        wall, glass: their colours in the scene's light.
        cell: pixels of a floor and of a bay.
        tint: brings further colours into the scene's light.
    """
    height, width = cell * floors, cell * bays
    front = np.empty((height, width, 3), np.uint8)
    front[:] = np.array(wall).astype(np.uint8)
    dark = draw.uniform(0.75, 1.1)
    front[cell - 2 :: cell] = np.minimum(np.array(wall) * dark, 255).astype(np.uint8)
    light = np.array([draw.uniform(0.55, 1.5) for _ in range(floors * bays)])
    panes = np.minimum(light.reshape(floors, bays, 1) * np.array(glass), 255).astype(np.uint8)
    panes = cv2.resize(panes, (width, height), interpolation=cv2.INTER_NEAREST)
    mask = _grid(cell, 1 + draw.below(cell // 4), 1 + draw.below(cell // 4), floors, bays)
    cv2.copyTo(panes, mask, front)
    for bay in range(bays):
        _shop(draw, front[-cell:, bay * cell : (bay + 1) * cell], tint)
    return front


_BOARDS: tuple[Colour, ...] = ((200, 30, 36), (30, 80, 170), (235, 190, 40), (230, 230, 230), (40, 120, 70))


def _shop(draw: Chance, part: UInt8, tint: Tint) -> None:
    """A door, a shop window with its board, or a poster of what looks like a car, a person or a sign."""
    kind, cell = draw.random(), part.shape[0]
    quarter, half = cell // 4, cell // 2
    if kind < 0.25:
        part[quarter:, quarter : quarter + half] = _any_colour(draw, tint, 20, 130)
    elif kind < 0.65:
        part[quarter + 1 : -1] = _any_colour(draw, tint, 30, 150)
        part[1 : quarter + 1] = tint(draw.pick(_BOARDS, 20))
    elif kind < 0.8:
        part[quarter:-quarter, quarter:-quarter] = _any_colour(draw, tint, 0, 255)
        part[quarter + 1 : half + 1, half - 1 : half + 1] = _any_colour(draw, tint, 0, 255)


def _any_colour(draw: Chance, tint: Tint, low: float, high: float) -> UInt8:
    grey, spread = draw.uniform(low, high), (high - low) / 5
    colour = tint(draw.vary((grey, grey, grey), spread))
    return np.array(colour).astype(np.uint8)
