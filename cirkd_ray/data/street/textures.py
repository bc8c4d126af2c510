"""Banks of noise and foliage, made once a process from fixed seeds, and facades, made for each building."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import UInt8

Field = NDArray[np.float32]
TILE = 256


@functools.cache
def noise(kind: str) -> Field:
    """A 512 x 512 field of zero mean and unit deviation that repeats every 256 pixels.

    Args:
        kind: `grain` (asphalt, plaster), `leaves` (foliage, grass) or `clouds` (large soft patches).
    """
    exponent, low, seed = {"grain": (0.6, 0.0, 1), "leaves": (0.9, 0.03, 2), "clouds": (2.2, 0.0, 3)}[kind]
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((TILE, TILE)))
    spectrum *= frequency**-exponent * (frequency >= low)
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    return np.tile((field / field.std()).astype(np.float32), (2, 2))


def noise_window(kind: str, rng: np.random.Generator, height: int, width: int, grain: float = 1.0) -> Field:
    """A random window of a field, enlarged to height x width; `grain` pixels of it become one of the field."""
    h = min(TILE, max(4, round(height / grain)))
    w = min(TILE, max(4, round(width / grain)))
    y, x = (int(v) for v in rng.integers(0, TILE, 2))
    window = noise(kind)[y : y + h, x : x + w]
    return window if window.shape == (height, width) else cv2.resize(window, (width, height))


CROWNS = 24
_CROWN_SIZE = 72


@functools.cache
def crown(number: int) -> tuple[Field, UInt8]:
    """Foliage number 0 .. `CROWNS` - 1: brightness around 1 (light comes from the upper left) and mask (0 or 255)."""
    rng = np.random.default_rng(1000 + number)
    grid = np.linspace(-1, 1, _CROWN_SIZE, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    height = np.full_like(x, -1.0)
    for _ in range(int(rng.integers(5, 10))):
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        radius = rng.uniform(0.3, 0.55)
        height = np.maximum(height, 1 - np.hypot(x - cx, (y - cy) * rng.uniform(0.9, 1.4)) / radius)
    rough = noise_window("leaves", rng, _CROWN_SIZE, _CROWN_SIZE, 1.2)
    mask = (height + 0.16 * rough) > 0.05
    light = 0.95 + 0.25 * (-0.5 * x - 0.8 * y) + 0.2 * height + 0.16 * rough
    return np.clip(light, 0.35, 1.6).astype(np.float32), (mask * 255).astype(np.uint8)


def facade(rng: np.random.Generator, floors: int, bays: int, wall: UInt8, glass: UInt8) -> UInt8:
    """A house front of `floors` rows and `bays` columns of windows over a ground floor, 12 x 10 pixels a cell."""
    cell_h, cell_w = 12, 10
    height, width = cell_h * floors, cell_w * bays
    rows, columns = np.arange(height) % cell_h, np.arange(width) % cell_w
    top, side = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    window = ((rows >= top) & (rows < cell_h - 3))[:, None] & ((columns >= side) & (columns < cell_w - side))[
        None
    ]
    front = np.empty((height, width, 3), np.int16)
    front[:] = wall
    panes = glass.astype(np.int16) + rng.integers(-35, 45, (floors, bays, 1), dtype=np.int16)
    panes = np.repeat(np.repeat(panes, cell_h, axis=0), cell_w, axis=1)
    np.copyto(front, panes, where=window[:, :, None])
    front[rows == cell_h - 2] += int(rng.integers(-30, 25))
    front[(rows + (np.arange(height) // cell_h)) % 3 == 0] -= int(rng.integers(0, 14))
    _ground_floor(rng, front, cell_h, cell_w, bays)
    return np.clip(front, 0, 255).astype(np.uint8)


def _ground_floor(
    rng: np.random.Generator, front: NDArray[np.int16], cell_h: int, cell_w: int, bays: int
) -> None:
    """Doors, shop windows and posters, some of which show what looks like a car, a person or a sign."""
    base = front[-cell_h:]
    for bay in range(bays):
        kind, left = rng.random(), bay * cell_w
        if kind < 0.25:
            base[2:, left + 3 : left + 7] = rng.integers(20, 130, 3)
        elif kind < 0.6:
            base[3:-2, left : left + cell_w] = rng.integers(30, 200, 3)
            base[1:3, left : left + cell_w] = rng.integers(0, 255, 3)
        elif kind < 0.7:
            base[4:9, left + 2 : left + 8] = rng.integers(0, 255, 3)
            base[5:8, left + 4 : left + 6] = rng.integers(0, 255, 3)
