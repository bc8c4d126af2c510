"""Road, pavements, verges, what is painted on them, and the shadows that fall on them."""

from __future__ import annotations

import cv2
import numpy as np

from cirkd_ray.data.shapes.canvas import FRACTION_BITS, Points, fixed
from cirkd_ray.data.shapes.stage import Label, Stage
from cirkd_ray.data.shapes.textures import TILE, noise

_DEPTHS = np.geomspace(1.2, 160.0, 18)


def draw_ground(stage: Stage) -> None:
    """Everything on the ground, in colours without light; `light_ground` comes next."""
    _draw_strips(stage)
    _draw_patches(stage)
    _draw_markings(stage)


def _strip(stage: Stage, left: float, right: float, depths: Points = _DEPTHS) -> Points:
    """Outline of the ground between two distances from the street's middle."""
    near, far = stage.camera.project(left, 0.0, depths), stage.camera.project(right, 0.0, depths[::-1])
    return np.concatenate([near, far])


def _draw_strips(stage: Stage) -> None:
    """Gardens to the horizon, pavements with kerbs and joints between their stones, the road."""
    canvas, street, draw = stage.canvas, stage.street, stage.draw
    road = draw.vary((98.0, 97.0, 99.0), 38)
    for side in (-1, 1):
        garden = draw.vary(draw.either((96.0, 118.0, 60.0), 0.7, (138.0, 122.0, 92.0)), 26)
        canvas.fill(_strip(stage, side * 0.5, side * 300.0), garden, Label.PLANT)
    for side in (-1, 1):
        # Pavements of asphalt look like the road: only their place tells them apart.
        paved = draw.vary(road, 16) if draw.chance(0.35) else draw.vary((150.0, 141.0, 134.0), 40)
        inner, outer = street.kerb(side), street.edge(side)
        canvas.fill(_strip(stage, inner, outer), paved, Label.PAVEMENT)
        if not draw.chance(0.4):
            dark = (paved[0] - 20, paved[1] - 20, paved[2] - 20)
            for z in np.arange(3.0, 14.0, draw.uniform(0.8, 2.0)):
                canvas.line(stage.camera.project(np.array([inner, outer]), 0.0, z), dark, 1)
    canvas.fill(_strip(stage, -street.half, street.half), road, Label.ROAD)
    for side in (-1, 1):
        if draw.chance(0.8):
            kerb = _strip(stage, street.kerb(side), street.kerb(side) + side * 0.16)
            canvas.fill(kerb, draw.vary((168.0, 165.0, 160.0), 40), Label.PAVEMENT)


def _draw_patches(stage: Stage) -> None:
    """Repairs, manholes and puddles; they stay road."""
    half, draw = stage.street.half, stage.draw
    for _ in range(draw.below(5)):
        x, z = draw.uniform(-half, half - 1), draw.uniform(3, 25)
        wide, deep, kind = draw.uniform(0.5, 2.5), draw.uniform(0.6, 5), draw.random()
        if kind < 0.6:
            corners = np.array([[x, z], [x + wide, z], [x + wide, z + deep], [x, z + deep]])
            colour = draw.vary((90.0, 88.0, 88.0), 40)
        else:
            turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            spread, colour = (0.35, (52.0, 50.0, 50.0)) if kind < 0.8 else (1.0, stage.look.sky[1])
            corners = np.stack([x + spread * np.cos(turn), z + 1.4 * spread * np.sin(turn)], axis=1)
        at = stage.camera.project(np.clip(corners[:, 0], -half, half), 0.0, corners[:, 1])
        stage.canvas.fill(at, colour)


def _draw_markings(stage: Stage) -> None:
    """Lane lines, an edge line and a crossing; they stay road."""
    half, draw, canvas = stage.street.half, stage.draw, stage.canvas
    paint = draw.vary((212.0, 210.0, 205.0), 35)
    lanes = [0.0] if half < 4.5 else [-half / 2, 0.0, half / 2]
    for lane in lanes if not draw.chance(0.25) else ():
        period, phase = draw.uniform(5, 10), draw.uniform(0, 5)
        length = period if draw.chance(0.2) else period * draw.uniform(0.35, 0.6)
        for start in np.arange(phase - 5, 70, period):
            if start + length > 1.5:
                depths = np.linspace(max(start, 1.2), start + length, 3)
                canvas.fill(_strip(stage, lane - 0.07, lane + 0.07, depths), paint)
    if draw.chance(0.5):
        side = -1 if draw.chance(0.5) else 1
        canvas.fill(_strip(stage, side * (half - 0.35), side * (half - 0.22)), paint)
    if draw.chance(0.3):
        start, deep = draw.uniform(4, 18), draw.uniform(2, 4)
        for x in np.arange(-half + 0.3, half - 0.5, 1.0):
            canvas.convex(_strip(stage, x, x + 0.5, np.array([start, start + deep])), paint)


def light_ground(stage: Stage, shadows: list[Points]) -> None:
    """Texture in perspective, shadows, light and haze on all that is drawn so far."""
    canvas, camera = stage.canvas, stage.camera
    top = min(canvas.height - 1, max(0, int(camera.horizon) + 1))
    rows = np.arange(top, canvas.height, dtype=np.float32)[:, None] - np.float32(camera.horizon)
    columns = np.arange(canvas.width, dtype=np.float32)[None, :] - np.float32(camera.centre)
    z = np.float32(camera.focal * camera.height) / np.maximum(rows - np.float32(camera.roll) * columns, 0.5)
    x = columns * (z / np.float32(camera.focal))
    fine, broad = (_on_ground(stage, x, z, kind, grain) for kind, grain in (("grain", 24.0), ("clouds", 5.0)))
    # Fading by row, not by pixel: the horizon is nearly level.
    far = camera.focal * camera.height / np.maximum(rows, 0.5)
    fade = np.exp(far * -stage.look.density).astype(np.float32)
    fine *= 0.07 * np.exp(far / -25).astype(np.float32)
    broad *= 0.07 * np.exp(far / -60).astype(np.float32)
    factor = (fine + broad + 1) * _shade(stage, shadows)[top:] * fade
    lit = cv2.merge([factor * np.float32(part) for part in stage.look.ambient])
    haze = np.repeat((1 - fade)[:, :, None] * np.array(stage.look.haze, np.float32), canvas.width, axis=1)
    lit = cv2.multiply(canvas.image[top:], lit, dtype=cv2.CV_32F)
    canvas.image[top:] = cv2.add(lit, haze, dtype=cv2.CV_8U)


def _on_ground(stage: Stage, x: Points, z: Points, kind: str, grain: float) -> Points:
    """A noise field laid on the ground, `grain` of its pixels a metre."""
    across = x * np.float32(grain) + np.float32(stage.draw.below(TILE))
    ahead = z * np.float32(grain) + np.float32(stage.draw.below(TILE))
    field: Points = cv2.remap(noise(kind), across, ahead, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return field


def _shade(stage: Stage, shadows: list[Points]) -> Points:
    """Share of the light that reaches each pixel of the ground."""
    mask = np.zeros((stage.canvas.height, stage.canvas.width), np.uint8)
    for outline in shadows:
        cv2.fillPoly(mask, [fixed(outline)], 255, cv2.LINE_AA, FRACTION_BITS)
    depth = 0.15 + 1.0 * stage.look.strength
    share: Points = 1.0 - np.float32(depth / 255.0) * cv2.blur(mask, (3, 3)).astype(np.float32)
    return share


def cast(stage: Stage, x: float, z: float, wide: float, tall: float) -> Points:
    """The shadow of something of this size at (x, z): to the side away from the sun, or a blot below it."""
    reach, depth = -stage.look.sun * tall * 0.8, 0.35 * wide + 0.2
    left, right, tip = (x, x + reach, depth / 2) if reach else (x - wide / 2, x + wide / 2, depth)
    xs, zs = np.array((left, right, right, left)), np.array((z - depth, z - tip, z + depth, z + depth))
    return stage.camera.project(xs, 0.0, zs)
