"""People, cars, bicycles, and street furniture: each drawn at one place."""

from __future__ import annotations

import numpy as np

from cirkd_ray.data.street.canvas import Colour, Points
from cirkd_ray.data.street.stage import Label, Stage
from cirkd_ray.data.street.textures import CROWNS, crown

_CLOTHES: tuple[Colour, ...] = (
    (40, 42, 50), (70, 72, 78), (120, 118, 114), (190, 188, 184), (150, 40, 38), (44, 62, 120),
    (60, 88, 58), (196, 164, 60), (110, 76, 52), (28, 28, 30), (90, 110, 140), (170, 120, 130),
)  # fmt: skip
_PAINTS: tuple[Colour, ...] = (
    (28, 29, 32), (200, 200, 202), (140, 142, 146), (92, 95, 100), (150, 30, 32), (34, 58, 112),
    (52, 84, 62), (186, 170, 130), (222, 222, 220), (120, 86, 60), (196, 150, 40),
)  # fmt: skip
_SKINS: tuple[Colour, ...] = ((224, 180, 150), (190, 140, 105), (130, 90, 62), (86, 58, 42))


def pick(stage: Stage, colours: tuple[Colour, ...], spread: float = 14.0) -> Colour:
    """One of the colours, varied."""
    return stage.vary(colours[int(stage.rng.integers(len(colours)))], spread)


def draw_person(
    stage: Stage, x: float, z: float, tall: float, lift: float = 0.0, riding: bool = False
) -> None:
    """A person `tall` metres high whose feet are `lift` metres above the ground at (x, z)."""
    base, k = stage.camera.project(x, lift, z), stage.camera.scale(z) * tall
    if k < 2.5:
        return
    turn = -1.0 if stage.chance(0.5) else 1.0
    stride = 0.16 if riding else stage.uniform(-0.15, 0.15)
    slim = stage.uniform(0.8, 1.25)

    def at(*points: tuple[float, float]) -> Points:
        return base + np.array(points) * (k * turn * slim, -k)

    coat, trousers = (stage.tint(pick(stage, _CLOTHES), z, turn * 0.4) for _ in range(2))
    skin, hair = stage.tint(pick(stage, _SKINS), z), stage.tint(pick(stage, _CLOTHES), z)
    canvas, label = stage.canvas, Label.PERSON
    for leg, foot in ((-0.05, -stride), (0.05, stride)):
        canvas.convex(
            at((leg - 0.055, 0.5), (leg + 0.055, 0.5), (leg + foot + 0.04, 0.0), (leg + foot - 0.04, 0.0)),
            trousers, label,
        )  # fmt: skip
    swing = stride * 0.7
    canvas.line(at((-0.1, 0.78), (-0.13 + swing, 0.45)), coat, 0.06 * k, label)
    hem = stage.uniform(0.36, 0.5)
    canvas.convex(at((-0.12, 0.81), (0.12, 0.81), (0.1, hem), (-0.1, hem)), coat, label)
    canvas.line(at((0.1, 0.78), (0.13 - swing, 0.45)), coat, 0.06 * k, label)
    canvas.ellipse(at((0.0, 0.92))[0], (0.06 * k * slim, 0.085 * k), skin, label)
    canvas.ellipse(at((-0.012, 0.955))[0], (0.055 * k * slim, 0.05 * k), hair, label)
    if not riding and stage.chance(0.2):
        canvas.convex(
            at((0.1, 0.5), (0.2, 0.5), (0.2, 0.33), (0.1, 0.33)), stage.tint(pick(stage, _CLOTHES), z), label
        )


def draw_bicycle(stage: Stage, x: float, z: float, rider: bool) -> None:
    """A bicycle, seen from the side to nearly from behind, with or without a rider (who is a person)."""
    k = stage.camera.scale(z)
    if k < 5:
        return
    base, squeeze = stage.camera.project(x, 0.0, z), stage.uniform(0.2, 1.0)
    squeeze *= -1.0 if stage.chance(0.5) else 1.0

    def at(*points: tuple[float, float]) -> Points:
        return base + np.array(points) * (k * squeeze, -k)

    canvas, label = stage.canvas, Label.BICYCLE
    tyre, frame = stage.tint((38, 38, 40), z), stage.tint(pick(stage, _PAINTS, 20), z)
    for hub in (-0.52, 0.52):
        centre, axes = at((hub, 0.34))[0], (max(0.34 * k * abs(squeeze), 0.6), 0.34 * k)
        ring = centre + _WHEEL * axes
        canvas.line(ring, tyre, 0.05 * k, label)
        stage.canvas.mark(ring, label)
    thick = 0.045 * k
    canvas.line(at((-0.52, 0.34), (-0.15, 0.8), (0.38, 0.78), (0.0, 0.3), (-0.52, 0.34)), frame, thick, label)
    canvas.line(at((-0.2, 0.95), (-0.15, 0.8), (0.0, 0.3)), frame, thick, label)
    canvas.line(at((0.52, 0.34), (0.36, 0.85), (0.38, 1.0), (0.25, 1.02)), frame, thick, label)
    canvas.line(at((-0.32, 0.96), (-0.08, 0.96)), tyre, 2 * thick, label)
    if rider:
        draw_person(stage, x, z, stage.uniform(1.5, 1.75), lift=0.22, riding=True)


_TURN = np.linspace(0, 2 * np.pi, 17)
_WHEEL = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def draw_pole(stage: Stage, x: float, z: float) -> None:
    """A lamp post, a traffic light or a signpost."""
    k = stage.camera.scale(z)
    if k < 4:
        return
    kind = stage.rng.random()
    tall = stage.uniform(2.4, 3.6) if kind > 0.5 else stage.uniform(4.0, 8.0)
    grey = stage.vary((122.0, 122.0, 120.0), 55) if stage.chance(0.8) else stage.vary((92.0, 74.0, 56.0), 20)
    colour, wide = stage.tint(grey, z), stage.uniform(0.07, 0.2)
    foot, top = stage.camera.project(x, np.array([0.0, tall]), z)
    stage.canvas.line(np.stack([foot, top]), colour, wide * k, Label.POLE)
    if kind <= 0.5 and stage.chance(0.7):
        reach = -np.sign(x) * stage.uniform(0.8, 2.2) * k
        stage.canvas.line(np.stack([top, top + (reach, -0.25 * k)]), colour, 0.08 * k, Label.POLE)
        stage.canvas.line(
            top + np.array([(reach, -0.22 * k), (reach * 1.25, -0.18 * k)]), colour, 0.15 * k, Label.POLE
        )
    if kind > 0.8:
        _traffic_light(stage, top, k, z)
    elif kind > 0.3:
        _sign(stage, top + (0.0, 0.35 * k if kind > 0.5 else stage.uniform(1.5, 2.5) * k), k, z)


def _traffic_light(stage: Stage, top: Points, k: float, z: float) -> None:
    wide, tall = 0.17 * k, 0.85 * k
    box = top + np.array([(-wide, 0), (wide, 0), (wide, tall), (-wide, tall)])
    stage.canvas.convex(box, stage.tint((34, 36, 36), z), Label.SIGN)
    lamp = int(stage.rng.integers(3))
    colour: Colour = ((235, 50, 40), (240, 170, 40), (50, 210, 120))[lamp]
    stage.canvas.ellipse(top + (0, (0.18 + 0.25 * lamp) * k), (0.1 * k, 0.1 * k), colour, None)


def _sign(stage: Stage, centre: Points, k: float, z: float) -> None:
    """A round, three-cornered or square plate with a rim."""
    size, shape = stage.uniform(0.28, 0.5) * k, int(stage.rng.integers(3))
    rims: tuple[Colour, ...] = ((200, 30, 36), (30, 80, 170), (235, 190, 40), (230, 230, 230), (90, 92, 96))
    faces: tuple[Colour, ...] = ((235, 235, 232), (30, 80, 170), (235, 190, 40), (200, 30, 36), (40, 120, 70))
    rim, face = (stage.tint(pick(stage, colours, 12), z) for colours in (rims, faces))
    corners = {0: 14, 1: 3, 2: 4}[shape]
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + {0: 0.0, 1: -np.pi / 2, 2: np.pi / 4}[shape]
    plate = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (size * stage.uniform(0.6, 1.0), size)
    stage.canvas.convex(centre + plate, rim, Label.SIGN)
    stage.canvas.convex(centre + plate * 0.68, face, None)


def draw_tree(stage: Stage, x: float, z: float, tall: float) -> None:
    """A tree; its trunk belongs to it."""
    k = stage.camera.scale(z)
    if k * tall < 5:
        return
    foot, fork = stage.camera.project(x, np.array([0.0, tall * 0.5]), z)
    bark = stage.tint(stage.vary((84.0, 72.0, 58.0), 30), z)
    stage.canvas.line(np.stack([foot, fork]), bark, stage.uniform(0.14, 0.4) * k, Label.TREE)
    wide = tall * stage.uniform(0.55, 0.9)
    top = stage.camera.project(x, tall, z)
    draw_crown(stage, top[0] - wide * k / 2, top[1], (wide * k, tall * stage.uniform(0.6, 0.78) * k), z)


def draw_crown(stage: Stage, left: float, top: float, size: tuple[float, float], z: float) -> None:
    """Foliage of `size` (width, height) pixels."""
    light, mask = crown(int(stage.rng.integers(CROWNS)))
    if stage.look.sun > 0 or (stage.look.sun == 0 and stage.chance(0.5)):
        light, mask = light[:, ::-1], mask[:, ::-1]
    base = np.array(stage.tint(stage.vary(stage.look.season, 26), z), np.float32)
    contrast = np.float32(np.exp(-stage.look.density * z))
    shades = np.clip((1 + (light[:, :, None] - 1) * contrast) * base, 0, 255).astype(np.uint8)
    stage.canvas.stamp(shades, np.ascontiguousarray(mask), left, top, size, Label.TREE)


def draw_bin(stage: Stage, x: float, z: float) -> None:
    """A bin, box or hydrant: none of the classes, so ignored."""
    k = stage.camera.scale(z)
    if k < 6:
        return
    base, wide, tall = (
        stage.camera.project(x, 0.0, z),
        stage.uniform(0.2, 0.45) * k,
        stage.uniform(0.6, 1.3) * k,
    )
    colour = stage.tint(pick(stage, _PAINTS), z)
    stage.canvas.convex(
        base + np.array([(-wide, 0), (-wide, -tall), (wide, -tall), (wide, 0)]), colour, Label.VOID
    )
    lid = base + np.array(
        [(-wide * 1.1, -tall), (-wide, -tall * 1.1), (wide, -tall * 1.1), (wide * 1.1, -tall)]
    )
    stage.canvas.convex(lid, (colour[0] * 0.7, colour[1] * 0.7, colour[2] * 0.7), Label.VOID)


def draw_car(stage: Stage, x: float, z: float, crossing: bool = False) -> None:
    """A car or van at (x, z) that stands along the street, or across it."""
    if stage.camera.scale(z) < 2.5:
        return
    van = stage.chance(0.2)
    wide, long = stage.uniform(1.7, 1.95), stage.uniform(3.8, 4.8)
    tall = stage.uniform(1.95, 2.5) if van else stage.uniform(1.35, 1.6)
    yaw = (
        stage.uniform(-0.06, 0.06) + (np.pi / 2 if crossing else 0.0) + (np.pi if stage.chance(0.5) else 0.0)
    )
    paint = pick(stage, _PAINTS)
    belt = tall * (0.5 if van else 0.58)
    body = _prism(stage, x, z, yaw, (-wide / 2, wide / 2, -long / 2, long / 2), (0.2, belt), 0.04)
    rear, front = (-0.49, 0.36) if van else (stage.uniform(-0.46, -0.36), stage.uniform(0.12, 0.22))
    inset = wide / 2 - 0.06
    cabin = _prism(
        stage, x, z, yaw, (-inset, inset, rear * long, front * long), (belt, tall), 0.12 if van else 0.26
    )
    _wheels(stage, x, z, yaw, wide, long, far=True)
    _faces(stage, body, z, paint, None)
    _lights(stage, body, z, toward=np.cos(yaw) < 0)
    _wheels(stage, x, z, yaw, wide, long, far=False)
    glass = stage.vary((52.0, 60.0, 68.0), 22)
    _faces(stage, cabin, z, paint, paint if van and stage.chance(0.5) else glass)


_SIDES = ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
_OUTWARD = ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))


def _prism(
    stage: Stage,
    x: float,
    z: float,
    yaw: float,
    plan: tuple[float, ...],
    heights: tuple[float, float],
    taper: float,
) -> tuple[Points, Points]:
    """Corners of a solid whose top is smaller by `taper` metres on each side, and where its sides look to (x)."""
    left, right, back, front = plan
    t = taper
    xs = np.array([left, right, right, left, left + t, right - t, right - t, left + t])
    zs = np.array([back, back, front, front, back + 2 * t, back + 2 * t, front - 2.2 * t, front - 2.2 * t])
    ys = np.repeat(heights, 4)
    c, s = np.cos(yaw), np.sin(yaw)
    corners = stage.camera.project(x + c * xs + s * zs, ys, z - s * xs + c * zs)
    facing = np.array([c * ox + s * oz for ox, oz in _OUTWARD])
    return corners, facing


def _faces(stage: Stage, solid: tuple[Points, Points], z: float, paint: Colour, glass: Colour | None) -> None:
    """The visible sides, in paint or glass with painted pillars, and the top."""
    corners, facing = solid
    for side, outward in zip(_SIDES, facing, strict=True):
        quad = corners[list(side)]
        if _turned_away(quad):
            continue
        stage.canvas.convex(quad, stage.tint(glass or paint, z, float(outward)), Label.CAR)
        if glass and glass != paint:
            pillar = stage.tint(paint, z, float(outward))
            width = 0.07 * stage.camera.scale(z)
            stage.canvas.line(quad[[0, 3, 2, 1]], pillar, width, Label.CAR)
    if not _turned_away(corners[4:]):
        stage.canvas.convex(
            corners[4:], stage.tint(paint, z - 2 if z > 2 else z, stage.look.sun * 0.6), Label.CAR
        )


def _turned_away(quad: Points) -> bool:
    """Whether the corners, counter-clockwise from outside, go the other way on the image."""
    a, b = quad[2] - quad[0], quad[3] - quad[1]
    return bool(a[0] * b[1] - a[1] * b[0] >= 0)


def _lights(stage: Stage, body: tuple[Points, Points], z: float, toward: bool) -> None:
    """Lamps and number plate on the end that is seen."""
    corners, _ = body
    for end, is_front in ((0, False), (2, True)):
        quad = corners[list(_SIDES[end])]
        if _turned_away(quad):
            continue
        colour: Colour = (235, 232, 215) if is_front else (190, 28, 30)
        for u in (0.03, 0.8):
            stage.canvas.convex(_within(quad, u, u + 0.17, 0.55, 0.8), stage.tint(colour, z), None)
        stage.canvas.convex(_within(quad, 0.36, 0.64, 0.25, 0.42), stage.tint((225, 222, 210), z), None)
        stage.canvas.convex(_within(quad, 0.0, 1.0, 0.0, 0.16), stage.tint((40, 40, 42), z), None)


def _within(quad: Points, left: float, right: float, low: float, high: float) -> Points:
    """The part of a quad (bottom left, bottom right, top right, top left) between shares of its width and height."""

    def at(u: float, v: float) -> Points:
        bottom, top = quad[0] + u * (quad[1] - quad[0]), quad[3] + u * (quad[2] - quad[3])
        return np.asarray(bottom + v * (top - bottom))

    return np.stack([at(left, low), at(right, low), at(right, high), at(left, high)])


def _wheels(stage: Stage, x: float, z: float, yaw: float, wide: float, long: float, far: bool) -> None:
    """The two wheels on the side that is seen (or, before the body is drawn, on the other one)."""
    c, s = np.cos(yaw), np.sin(yaw)
    radius = 0.33
    seen = (x + float(stage.camera.middle(z))) * c - z * s
    side = -1.0 if (seen > 0) != far else 1.0
    for along in (-0.31, 0.31):
        xs = np.full(len(_WHEEL), side * wide / 2)
        zs, ys = along * long + radius * _WHEEL[:, 0], radius + radius * _WHEEL[:, 1]
        rim = stage.camera.project(x + c * xs + s * zs, ys, z - s * xs + c * zs)
        stage.canvas.convex(rim, stage.tint((30, 30, 32), z), Label.CAR)
        if not far:
            stage.canvas.convex(
                rim.mean(axis=0) + (rim - rim.mean(axis=0)) * 0.55, stage.tint((130, 130, 132), z), None
            )
