"""Cars and vans: solids seen in perspective."""

from __future__ import annotations

import math

import numpy as np

from cirkd_ray.data.shapes.canvas import Colour, Points
from cirkd_ray.data.shapes.stage import Label, Stage

PAINTS: tuple[Colour, ...] = (
    (28, 29, 32), (200, 200, 202), (140, 142, 146), (92, 95, 100), (150, 30, 32), (34, 58, 112),
    (52, 84, 62), (186, 170, 130), (222, 222, 220), (120, 86, 60), (196, 150, 40),
)  # fmt: skip
_TURN = np.linspace(0, 2 * np.pi, 13)
WHEEL = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def draw_car(stage: Stage, x: float, z: float, crossing: bool = False) -> None:
    """A car or van at (x, z) that stands along the street, or across it."""
    draw, k = stage.draw, stage.camera.scale(z)
    middle, reach = stage.camera.point(x, 0.0, z)[0], stage.camera.scale(z - 2.5) * (2.6 if crossing else 1.2)
    if k < 0.01 * stage.canvas.width or not stage.canvas.sees(middle - reach, middle + reach):
        return
    van = draw.chance(0.2)
    wide, long = draw.uniform(1.7, 1.95), draw.uniform(3.8, 4.8)
    tall = draw.uniform(1.95, 2.5) if van else draw.uniform(1.35, 1.6)
    rear, front = (-0.49, 0.36) if van else (draw.uniform(-0.46, -0.36), draw.uniform(0.12, 0.22))
    yaw = (
        draw.uniform(-0.06, 0.06)
        + (math.pi / 2 if crossing else 0.0)
        + (math.pi if draw.chance(0.5) else 0.0)
    )
    c, s = math.cos(yaw), math.sin(yaw)
    # The side that is seen: the sign of the camera's place in the car's own frame.
    side = -1.0 if (x + float(stage.camera.middle(z))) * c - z * s > 0 else 1.0
    belt, inset = tall * (0.5 if van else 0.58), wide / 2 - 0.06
    local = np.concatenate([
        _prism((-wide / 2, wide / 2, -long / 2, long / 2), (0.2, belt), 0.04),
        _prism((-inset, inset, rear * long, front * long), (belt, tall), 0.12 if van else 0.26),
        *(_disc(at * wide / 2, along * long, 0.33) for at in (-side, side) for along in (-0.31, 0.31)),
        *(_disc(side * wide / 2, along * long, 0.18) for along in (-0.31, 0.31)),
    ])  # fmt: skip
    lx, ly, lz = local.T
    at = stage.camera.project(x + c * lx + s * lz, ly, z - s * lx + c * lz)
    facing = [c * ox + s * oz for ox, oz in _OUTWARD]
    paint, glass = draw.pick(PAINTS), draw.vary((52.0, 60.0, 68.0), 22)
    near, n = k > 0.035 * stage.canvas.width, len(WHEEL)
    if near:
        _discs(stage, at[16 : 16 + 2 * n], (30, 30, 32), z, Label.CAR)
    _faces(stage, at[0:8], facing, z, paint, None)
    if near:
        _lights(stage, at[0:8], z)
    _discs(stage, at[16 + 2 * n : 16 + 4 * n], (30, 30, 32), z, Label.CAR)
    if near:
        _discs(stage, at[16 + 4 * n :], (130, 130, 132), z, None)
    _faces(stage, at[8:16], facing, z, paint, paint if van and draw.chance(0.5) else glass)


_SIDES = ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
_OUTWARD = ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))


def _prism(plan: tuple[float, float, float, float], heights: tuple[float, float], taper: float) -> Points:
    """Corners (8 x 3) of a solid over `plan` (left, right, back, front); its top is smaller by `taper`."""
    (left, right, back, front), (low, high), t = plan, heights, taper
    return np.array([
        (left, low, back), (right, low, back), (right, low, front), (left, low, front),
        (left + t, high, back + 2 * t), (right - t, high, back + 2 * t),
        (right - t, high, front - 2.2 * t), (left + t, high, front - 2.2 * t),
    ])  # fmt: skip


def _disc(x: float, z: float, radius: float) -> Points:
    """Corners (n x 3) of a wheel that stands on the ground, or of a part of it around the same hub."""
    disc = np.empty((len(WHEEL), 3))
    disc[:, 0] = x
    disc[:, 1] = 0.33 + radius * WHEEL[:, 1]
    disc[:, 2] = z + radius * WHEEL[:, 0]
    return disc


def _discs(stage: Stage, corners: Points, colour: Colour, z: float, label: int | None) -> None:
    half, tinted = len(WHEEL), stage.tint(colour, z)
    stage.canvas.convex(corners[:half], tinted, label)
    stage.canvas.convex(corners[half:], tinted, label)


def _faces(
    stage: Stage, corners: Points, facing: list[float], z: float, paint: Colour, glass: Colour | None
) -> None:
    """The visible sides of a solid, in paint or glass with painted pillars, and its top."""
    k = stage.camera.scale(z)
    for side, outward in zip(_SIDES, facing, strict=True):
        quad = corners[list(side)]
        if _turned_away(quad):
            continue
        stage.canvas.convex(quad, stage.tint(glass or paint, z, outward), Label.CAR)
        if glass and glass != paint and k > 0.02 * stage.canvas.width:
            stage.canvas.line(quad[[0, 3, 2, 1]], stage.tint(paint, z, outward), 0.07 * k, Label.CAR)
    if not _turned_away(corners[4:]):
        stage.canvas.convex(corners[4:], stage.tint(paint, z - 2, stage.look.sun * 0.6), Label.CAR)


def _turned_away(quad: Points) -> bool:
    """Whether the corners, counter-clockwise from outside, go the other way on the image."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad.tolist()
    return bool((cx - ax) * (dy - by) - (cy - ay) * (dx - bx) >= 0)


_LAMPS: tuple[tuple[tuple[float, float, float, float], Colour | None], ...] = (
    ((0.03, 0.2, 0.55, 0.8), None),
    ((0.8, 0.97, 0.55, 0.8), None),
    ((0.36, 0.64, 0.25, 0.42), (225, 222, 210)),
    ((0.0, 1.0, 0.0, 0.16), (40, 40, 42)),
)
_SHARES = np.array([((a, c), (b, c), (b, d), (a, d)) for (a, b, c, d), _ in _LAMPS])


def _lights(stage: Stage, corners: Points, z: float) -> None:
    """Lamps, number plate and bumper on the end that is seen."""
    for end, lamp in ((0, (190.0, 28.0, 30.0)), (2, (235.0, 232.0, 215.0))):
        quad = corners[list(_SIDES[end])]
        if _turned_away(quad):
            continue
        u, v = _SHARES[..., :1], _SHARES[..., 1:]
        bottom, top = quad[0] + u * (quad[1] - quad[0]), quad[3] + u * (quad[2] - quad[3])
        for part, (_, colour) in zip(bottom + v * (top - bottom), _LAMPS, strict=True):
            stage.canvas.convex(part, stage.tint(colour or lamp, z), None)
