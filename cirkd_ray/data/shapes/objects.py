"""People, bicycles, trees and street furniture: each drawn at one place."""

from __future__ import annotations

import numpy as np

from cirkd_ray.data.shapes.canvas import Colour, Points
from cirkd_ray.data.shapes.cars import PAINTS, WHEEL
from cirkd_ray.data.shapes.stage import Label, Stage
from cirkd_ray.data.shapes.textures import CROWNS, SHADE_SCALE, crown

_CLOTHES: tuple[Colour, ...] = (
    (40, 42, 50), (70, 72, 78), (120, 118, 114), (190, 188, 184), (150, 40, 38), (44, 62, 120),
    (60, 88, 58), (196, 164, 60), (110, 76, 52), (28, 28, 30), (90, 110, 140), (170, 120, 130),
)  # fmt: skip
_SKINS: tuple[Colour, ...] = ((224, 180, 150), (190, 140, 105), (130, 90, 62), (86, 58, 42))


def draw_person(
    stage: Stage, x: float, z: float, tall: float, lift: float = 0.0, riding: bool = False
) -> None:
    """A person `tall` metres high whose feet are `lift` metres above the ground at (x, z)."""
    draw, canvas, label = stage.draw, stage.canvas, Label.PERSON
    base, k = stage.camera.point(x, lift, z), stage.camera.scale(z) * tall
    if k < 0.02 * canvas.width or not canvas.sees(base[0] - k / 2, base[0] + k / 2):
        return
    turn = -1.0 if draw.chance(0.5) else 1.0
    stride = 0.16 if riding else draw.uniform(-0.15, 0.15)
    slim, hem, swing = draw.uniform(0.8, 1.25), draw.uniform(0.36, 0.5), stride * 0.7
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
    if k > 0.05 * canvas.width:
        canvas.line(at[12:14], coat, 0.06 * k, label)
        canvas.line(at[14:16], coat, 0.06 * k, label)
    canvas.convex(at[8:12], coat, label)
    canvas.ellipse(at[16], (0.06 * k * slim, 0.085 * k), skin, label)
    if k > 0.05 * canvas.width:
        canvas.ellipse(at[17], (0.055 * k * slim, 0.05 * k), hair, label)
        if not riding and draw.chance(0.2):
            canvas.convex(at[18:22], stage.tint(draw.pick(_CLOTHES), z), label)


_FRAME = (
    (-0.52, 0.34), (-0.15, 0.8), (0.38, 0.78), (0.0, 0.3), (-0.52, 0.34),
    (-0.2, 0.95), (-0.15, 0.8), (0.0, 0.3),
    (0.52, 0.34), (0.36, 0.85), (0.38, 1.0), (0.25, 1.02),
    (-0.32, 0.96), (-0.08, 0.96),
)  # fmt: skip


def draw_bicycle(stage: Stage, x: float, z: float, rider: bool) -> None:
    """A bicycle, seen from the side to nearly from behind, with or without a rider (who is a person)."""
    k, base, canvas = stage.camera.scale(z), stage.camera.point(x, 0.0, z), stage.canvas
    if k < 0.02 * canvas.width or not canvas.sees(base[0] - k, base[0] + k):
        return
    squeeze = stage.draw.uniform(0.2, 1.0) * (-1.0 if stage.draw.chance(0.5) else 1.0)
    at, label = base + np.array(_FRAME) * (k * squeeze, -k), Label.BICYCLE
    tyre, frame = stage.tint((38, 38, 40), z), stage.tint(stage.draw.pick(PAINTS, 20), z)
    for hub in (0, 8):
        ring = at[hub] + WHEEL * (max(0.34 * k * abs(squeeze), 0.6), 0.34 * k)
        canvas.line(ring, tyre, 0.05 * k, label)
        canvas.mark(ring, label)
    thick = 0.045 * k
    canvas.line(at[0:5], frame, thick, label)
    canvas.line(at[5:8], frame, thick, label)
    canvas.line(at[8:12], frame, thick, label)
    canvas.line(at[12:14], tyre, 2 * thick, label)
    if rider:
        draw_person(stage, x, z, stage.draw.uniform(1.5, 1.75), lift=0.22, riding=True)


def draw_pole(stage: Stage, x: float, z: float) -> None:
    """A lamp post, a traffic light or a signpost."""
    k, foot = stage.camera.scale(z), stage.camera.point(x, 0.0, z)
    if k < 0.016 * stage.canvas.width or not stage.canvas.sees(foot[0] - 3 * k, foot[0] + 3 * k):
        return
    draw, canvas = stage.draw, stage.canvas
    kind = draw.random()
    tall = draw.uniform(2.4, 3.6) if kind > 0.5 else draw.uniform(4.0, 8.0)
    grey = draw.vary((122.0, 122.0, 120.0), 55) if draw.chance(0.8) else draw.vary((92.0, 74.0, 56.0), 20)
    colour, top = stage.tint(grey, z), foot - np.array((0.0, tall * k))
    canvas.line(np.array([foot, top]), colour, draw.uniform(0.07, 0.2) * k, Label.POLE)
    if kind <= 0.5 and draw.chance(0.7):
        reach = -np.sign(x) * draw.uniform(0.8, 2.2) * k
        arm = top + np.array([(0, 0), (reach, -0.25 * k), (reach, -0.22 * k), (reach * 1.25, -0.18 * k)])
        canvas.line(arm[:2], colour, 0.08 * k, Label.POLE)
        canvas.line(arm[2:], colour, 0.15 * k, Label.POLE)
    if kind > 0.8:
        _traffic_light(stage, top, k, z)
    elif kind > 0.3:
        below = 0.35 if kind > 0.5 else draw.uniform(1.5, 2.5)
        _sign(stage, top + np.array((0.0, below * k)), k, z)


def _traffic_light(stage: Stage, top: Points, k: float, z: float) -> None:
    wide, tall = 0.17 * k, 0.85 * k
    box = top + np.array([(-wide, 0), (wide, 0), (wide, tall), (-wide, tall)])
    stage.canvas.convex(box, stage.tint((34, 36, 36), z), Label.SIGN)
    lamp = stage.draw.below(3)
    colour: Colour = ((235, 50, 40), (240, 170, 40), (50, 210, 120))[lamp]
    stage.canvas.ellipse(top + np.array((0, (0.18 + 0.25 * lamp) * k)), (0.1 * k, 0.1 * k), colour, None)


def _sign(stage: Stage, centre: Points, k: float, z: float) -> None:
    """A round, three-cornered or square plate with a rim."""
    size, shape = stage.draw.uniform(0.28, 0.5) * k, stage.draw.below(3)
    rims: tuple[Colour, ...] = ((200, 30, 36), (30, 80, 170), (235, 190, 40), (230, 230, 230), (90, 92, 96))
    faces: tuple[Colour, ...] = ((235, 235, 232), (30, 80, 170), (235, 190, 40), (200, 30, 36), (40, 120, 70))
    rim, face = (stage.tint(stage.draw.pick(colours, 12), z) for colours in (rims, faces))
    corners = {0: 14, 1: 3, 2: 4}[shape]
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False) + {0: 0.0, 1: -np.pi / 2, 2: np.pi / 4}[shape]
    plate = np.stack([np.cos(turn), np.sin(turn)], axis=1) * (size * stage.draw.uniform(0.6, 1.0), size)
    stage.canvas.convex(centre + plate, rim, Label.SIGN)
    stage.canvas.convex(centre + plate * 0.68, face, None)


def draw_tree(stage: Stage, x: float, z: float, tall: float) -> None:
    """A tree; its trunk belongs to it."""
    k, foot = stage.camera.scale(z), stage.camera.point(x, 0.0, z)
    if k * tall < 0.02 * stage.canvas.width or not stage.canvas.sees(foot[0] - k * tall, foot[0] + k * tall):
        return
    fork = foot - (0.0, 0.5 * tall * k)
    bark = stage.tint(stage.draw.vary((84.0, 72.0, 58.0), 30), z)
    stage.canvas.line(np.array([foot, fork]), bark, stage.draw.uniform(0.14, 0.4) * k, Label.TREE)
    wide = tall * stage.draw.uniform(0.55, 0.9)
    draw_crown(
        stage,
        foot[0] - wide * k / 2,
        foot[1] - tall * k,
        (wide * k, tall * stage.draw.uniform(0.6, 0.78) * k),
        z,
    )


def draw_crown(stage: Stage, left: float, top: float, size: tuple[float, float], z: float) -> None:
    """Foliage of `size` (width, height) pixels."""
    if not stage.canvas.sees(left, left + size[0]):
        return
    cutout = crown(stage.draw.below(CROWNS))
    if stage.look.sun > 0 or (stage.look.sun == 0 and stage.draw.chance(0.5)):
        cutout = cutout[:, ::-1]
    base = np.array(stage.tint(stage.draw.vary(stage.look.season, 26), z))
    contrast = np.exp(-stage.look.density * z)
    palette = np.minimum((1 + (_SHADES - 1) * contrast) * base, 255).astype(np.uint8)
    stage.canvas.stamp(cutout, palette, (left, top, max(size[0], 1), max(size[1], 1)), Label.TREE)


_SHADES = (np.arange(256) * SHADE_SCALE)[:, None]


def draw_bin(stage: Stage, x: float, z: float) -> None:
    """A bin, box or hydrant: none of the classes, so ignored."""
    k = stage.camera.scale(z)
    if k < 0.02 * stage.canvas.width:
        return
    base, wide, tall = (
        stage.camera.point(x, 0.0, z),
        stage.draw.uniform(0.2, 0.45) * k,
        stage.draw.uniform(0.6, 1.3) * k,
    )
    colour = stage.tint(stage.draw.pick(PAINTS), z)
    stage.canvas.convex(
        base + np.array([(-wide, 0), (-wide, -tall), (wide, -tall), (wide, 0)]), colour, Label.VOID
    )
    lid = base + np.array(
        [(-wide * 1.1, -tall), (-wide, -tall * 1.1), (wide, -tall * 1.1), (wide * 1.1, -tall)]
    )
    stage.canvas.convex(lid, (colour[0] * 0.7, colour[1] * 0.7, colour[2] * 0.7), Label.VOID)
