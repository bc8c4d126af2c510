"""Cars, people, trees, signs and lamps: each drawn at one place."""

from __future__ import annotations

import math

import numpy as np

from cirkd_ray.data.shapes.canvas import Colour, Points
from cirkd_ray.data.shapes.stage import Label, Stage
from cirkd_ray.data.shapes.textures import CROWNS, SHADE_SCALE, crown

_PAINTS: tuple[Colour, ...] = (
    (28, 29, 32), (200, 200, 202), (140, 142, 146), (92, 95, 100), (150, 30, 32), (34, 58, 112),
    (52, 84, 62), (186, 170, 130), (222, 222, 220), (120, 86, 60), (196, 150, 40),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (40, 42, 50), (70, 72, 78), (120, 118, 114), (190, 188, 184), (150, 40, 38), (44, 62, 120),
    (60, 88, 58), (196, 164, 60), (110, 76, 52), (28, 28, 30), (90, 110, 140), (170, 120, 130),
)  # fmt: skip
_SKINS: tuple[Colour, ...] = ((224, 180, 150), (190, 140, 105), (130, 90, 62), (86, 58, 42))
_RIMS: tuple[Colour, ...] = ((200, 30, 36), (30, 80, 170), (235, 190, 40), (230, 230, 230), (90, 92, 96))
_FACES: tuple[Colour, ...] = ((235, 235, 232), (30, 80, 170), (235, 190, 40), (200, 30, 36), (40, 120, 70))
_TURN = np.linspace(0, 2 * np.pi, 13)
_WHEEL = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
# Sides of a car's solid (corners, counter-clockwise from outside) and the way each faces in the car's frame.
_SIDES = ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
_OUTWARD = ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))


def draw_car(stage: Stage, x: float, z: float, crossing: bool = False) -> None:
    """A car or van at (x, z) that stands along the street, or across it."""
    draw, k = stage.draw, stage.camera.scale(z)
    reach = stage.camera.scale(z - 2.5) * (2.6 if crossing else 1.2)
    if not stage.shows(k, stage.camera.point(x, 0.0, z)[0], reach, 0.01):
        return
    van = draw.chance(0.2)
    wide, long = draw.uniform(1.7, 1.95), draw.uniform(3.8, 4.8)
    tall = draw.uniform(1.95, 2.5) if van else draw.uniform(1.35, 1.6)
    rear, front = (-0.49, 0.36) if van else (draw.uniform(-0.46, -0.36), draw.uniform(0.12, 0.22))
    yaw = draw.uniform(-0.06, 0.06) + (math.pi / 2 if crossing else 0.0)
    yaw += math.pi if draw.chance(0.5) else 0.0
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
    corners = stage.camera.project(x + c * lx + s * lz, ly, z - s * lx + c * lz)
    body, cabin, wheels = corners[0:8], corners[8:16], corners[16:].reshape(6, len(_WHEEL), 2)
    facing = [c * ox + s * oz for ox, oz in _OUTWARD]
    paint, glass = draw.pick(_PAINTS), draw.vary((52.0, 60.0, 68.0), 22)
    near, tyre = k > 0.035 * stage.canvas.width, stage.tint((30, 30, 32), z)
    for wheel in wheels[:2] if near else ():
        stage.canvas.convex(wheel, tyre, Label.CAR)
    _solid(stage, body, facing, z, paint, None)
    if near:
        _lights(stage, body, z)
    for wheel in wheels[2:4]:
        stage.canvas.convex(wheel, tyre, Label.CAR)
    for hub in wheels[4:] if near else ():
        stage.canvas.convex(hub, stage.tint((130, 130, 132), z))
    _solid(stage, cabin, facing, z, paint, paint if van and draw.chance(0.5) else glass)


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
    across, up = _WHEEL.T
    return np.stack([np.full(len(_WHEEL), x), 0.33 + radius * up, z + radius * across], axis=1)


def _solid(
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


# Both lamps, the number plate, the bumper: left, right, low, high as shares of the car's end, and colour.
_LAMPS: tuple[tuple[tuple[float, float, float, float], Colour | None], ...] = (
    ((0.03, 0.2, 0.55, 0.8), None),
    ((0.8, 0.97, 0.55, 0.8), None),
    ((0.36, 0.64, 0.25, 0.42), (225, 222, 210)),
    ((0.0, 1.0, 0.0, 0.16), (40, 40, 42)),
)
_SHARES = np.array([((a, c), (b, c), (b, d), (a, d)) for (a, b, c, d), _ in _LAMPS])


def _lights(stage: Stage, body: Points, z: float) -> None:
    """Lamps, number plate and bumper on the end that is seen."""
    for end, lamp in ((0, (190.0, 28.0, 30.0)), (2, (235.0, 232.0, 215.0))):
        quad = body[list(_SIDES[end])]
        if _turned_away(quad):
            continue
        u, v = _SHARES[..., :1], _SHARES[..., 1:]
        bottom, top = quad[0] + u * (quad[1] - quad[0]), quad[3] + u * (quad[2] - quad[3])
        for part, (_, colour) in zip(bottom + v * (top - bottom), _LAMPS, strict=True):
            stage.canvas.convex(part, stage.tint(colour or lamp, z))


def draw_person(stage: Stage, x: float, z: float, tall: float) -> None:
    """A person `tall` metres high who stands or walks at (x, z)."""
    draw, canvas, label = stage.draw, stage.canvas, Label.PERSON
    base, k = stage.camera.point(x, 0.0, z), stage.camera.scale(z) * tall
    if not stage.shows(k, base[0], k / 2, 0.05):
        return
    turn = -1.0 if draw.chance(0.5) else 1.0
    stride = draw.uniform(-0.15, 0.15)
    slim, hem, swing = draw.uniform(1.0, 1.5), draw.uniform(0.36, 0.5), stride * 0.7
    outline = (
        (-0.105, 0.5), (0.005, 0.5), (-0.01 - stride, 0.0), (-0.09 - stride, 0.0),
        (-0.005, 0.5), (0.105, 0.5), (0.09 + stride, 0.0), (0.01 + stride, 0.0),
        (-0.12, 0.81), (0.12, 0.81), (0.1, hem), (-0.1, hem),
        (-0.1, 0.78), (-0.13 + swing, 0.45), (0.1, 0.78), (0.13 - swing, 0.45),
        (0.0, 0.92), (-0.012, 0.955),
        (0.1, 0.5), (0.2, 0.5), (0.2, 0.33), (0.1, 0.33),
    )  # fmt: skip
    at = base + np.array(outline) * (k * turn * slim, -k)
    coat, trousers = (stage.tint(draw.pick(_CLOTHES), z, turn * 0.4) for _ in range(2))
    skin, hair = stage.tint(draw.pick(_SKINS), z), stage.tint(draw.pick(_CLOTHES), z)
    canvas.convex(at[0:4], trousers, label)
    canvas.convex(at[4:8], trousers, label)
    near = k > 0.05 * canvas.width
    for arm in (at[12:14], at[14:16]) if near else ():
        canvas.line(arm, coat, 0.06 * k, label)
    canvas.convex(at[8:12], coat, label)
    canvas.ellipse(at[16], (0.06 * k * slim, 0.085 * k), skin, label)
    if near:
        canvas.ellipse(at[17], (0.055 * k * slim, 0.05 * k), hair, label)
        if draw.chance(0.2):
            canvas.convex(at[18:22], stage.tint(draw.pick(_CLOTHES), z), label)


def draw_pole(stage: Stage, x: float, z: float) -> None:
    """A lamp, a traffic light or a sign; the post has the label of what it stands before."""
    k, foot = stage.camera.scale(z), stage.camera.point(x, 0.0, z)
    if not stage.shows(k, foot[0], 3 * k, 0.025):
        return
    draw, canvas = stage.draw, stage.canvas
    kind = draw.random()
    tall = draw.uniform(2.4, 3.6) if kind > 0.5 else draw.uniform(4.0, 8.0)
    grey = draw.vary((122.0, 122.0, 120.0), 55) if draw.chance(0.8) else draw.vary((92.0, 74.0, 56.0), 20)
    colour, top = stage.tint(grey, z), foot - np.array((0.0, tall * k))
    canvas.line(np.array([foot, top]), colour, draw.uniform(0.07, 0.2) * k)
    if kind <= 0.5 and draw.chance(0.7):
        reach = -np.sign(x) * draw.uniform(0.8, 2.2) * k
        arm = top + np.array([(0, 0), (reach, -0.25 * k), (reach, -0.22 * k), (reach * 1.25, -0.18 * k)])
        canvas.line(arm[:2], colour, 0.08 * k)
        canvas.line(arm[2:], colour, 0.15 * k)
    if kind > 0.7:
        _traffic_light(stage, top, k, z)
    elif kind > 0.2:
        below = 0.5 if kind > 0.5 else draw.uniform(1.5, 2.5)
        _sign(stage, top + np.array((0.0, below * k)), k, z)


def _traffic_light(stage: Stage, top: Points, k: float, z: float) -> None:
    box = top + np.array([(-1, 0), (1, 0), (1, 1), (-1, 1)]) * (0.36 * k, 1.5 * k)
    stage.canvas.convex(box, stage.tint((34, 36, 36), z), Label.SIGN)
    lamp = stage.draw.below(3)
    colour: Colour = ((235, 50, 40), (240, 170, 40), (50, 210, 120))[lamp]
    stage.canvas.ellipse(top + np.array((0, (0.3 + 0.45 * lamp) * k)), (0.2 * k, 0.2 * k), colour, None)


def _sign(stage: Stage, centre: Points, k: float, z: float) -> None:
    """A round, three-cornered or square plate with a rim."""
    size, shape = stage.draw.uniform(0.55, 0.9) * k, stage.draw.below(3)
    rim, face = (stage.tint(stage.draw.pick(colours, 50), z) for colours in (_RIMS, _FACES))
    corners, start = ((14, 0.0), (3, -np.pi / 2), (4, np.pi / 4))[shape]
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + start
    plate = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (size * stage.draw.uniform(0.6, 1.0), size)
    stage.canvas.convex(centre + plate, rim, Label.SIGN)
    stage.canvas.convex(centre + plate * 0.68, face)


def draw_tree(stage: Stage, x: float, z: float, tall: float) -> None:
    """A tree; its trunk belongs to it."""
    k, foot, draw = stage.camera.scale(z), stage.camera.point(x, 0.0, z), stage.draw
    if not stage.shows(k * tall, foot[0], k * tall):
        return
    fork = foot - (0.0, 0.5 * tall * k)
    bark = stage.tint(draw.vary((84.0, 72.0, 58.0), 30), z)
    stage.canvas.line(np.array([foot, fork]), bark, draw.uniform(0.14, 0.4) * k, Label.PLANT)
    wide, high = tall * draw.uniform(0.55, 0.9), tall * draw.uniform(0.6, 0.78)
    _crown(stage, foot[0] - wide * k / 2, foot[1] - tall * k, (wide * k, high * k), z)


def draw_bush(stage: Stage, x: float, z: float, tall: float) -> None:
    """A bush or a part of a hedge."""
    k, wide = stage.camera.scale(z), tall * stage.draw.uniform(1.2, 3.0)
    if k * tall >= 2:
        top = stage.camera.point(x, tall, z)
        _crown(stage, top[0] - wide * k / 2, top[1], (wide * k, tall * 1.12 * k), z)


def _crown(stage: Stage, left: float, top: float, size: tuple[float, float], z: float) -> None:
    """Foliage of `size` (width, height) pixels."""
    if not stage.canvas.sees(left, left + size[0]):
        return
    cutout = crown(stage.draw.below(CROWNS))
    if stage.look.sun > 0 or (stage.look.sun == 0 and stage.draw.chance(0.5)):
        cutout = cutout[:, ::-1]
    base = np.array(stage.tint(stage.draw.vary(stage.look.season, 26), z))
    contrast = np.exp(-stage.look.density * z)
    palette = np.minimum((1 + (_SHADES - 1) * contrast) * base, 255).astype(np.uint8)
    stage.canvas.stamp(cutout, palette, (left, top, max(size[0], 1), max(size[1], 1)), Label.PLANT)


_SHADES = (np.arange(256) * SHADE_SCALE)[:, None]
