"""What lines the street: houses, hedges, parks; and the skyline behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cirkd_ray.data.shapes.canvas import Colour
from cirkd_ray.data.shapes.objects import draw_bush, draw_tree
from cirkd_ray.data.shapes.stage import Label, Stage
from cirkd_ray.data.shapes.textures import facade

Item = tuple[float, Callable[[], None]]
"""A drawing and the distance that orders it: the farthest is drawn first."""

_WALLS: tuple[Colour, ...] = (
    (168, 156, 138), (142, 92, 74), (196, 186, 168), (112, 110, 108), (150, 158, 164), (182, 148, 110),
    (96, 88, 84), (204, 202, 198), (126, 138, 150), (104, 116, 76), (146, 118, 62), (86, 98, 66),
)  # fmt: skip
_REACH = 90.0


def line_side(stage: Stage, side: int, built: float) -> list[Item]:
    """One side of the street from near to far; `built` is the share of it that has houses."""
    items: list[Item] = []
    draw = stage.draw
    z = draw.uniform(-8.0, 1.0)
    while z < _REACH:
        roll = draw.random()
        if roll < built:
            long = draw.uniform(8.0, 24.0)
            items.append(_house(stage, side, z, z + long))
        else:
            long = draw.uniform(5.0, 18.0)
            items += _open_ground(stage, side, z, z + long, roll < built + 0.5 * (1 - built))
        z += long + (draw.uniform(1.0, 5.0) if draw.chance(0.3) else 0.0)
    return items


def _house(stage: Stage, side: int, near: float, far: float) -> Item:
    draw = stage.draw
    floors, set_back = 1 + draw.below(6), draw.uniform(0.0, 1.5)
    tall, deep = 3.2 * floors + draw.uniform(0.4, 1.2), draw.uniform(8, 16)
    wall = draw.pick(_WALLS, 26)
    # Glass fronts mirror the sky: as bright and blue as it is.
    glass = stage.look.sky[1] if draw.chance(0.4) else draw.vary((64.0, 72.0, 82.0), 28)
    roof = draw.vary(draw.either((112.0, 66.0, 52.0), 0.5, (80.0, 80.0, 86.0)), 22)
    pitched = draw.uniform(1.5, 3.5) if draw.chance(0.5) and floors < 5 else 0.0
    x = stage.street.front(side) + side * set_back
    outer, z0 = x + side * deep, max(near, 1.3)

    def front(xs: tuple[float, float], zs: tuple[float, float], facing: float) -> None:
        _front(stage, floors, (wall, glass), tall, xs, zs, facing)

    def draw_house() -> None:
        if far <= z0 + 0.5:
            return
        if near > 1.5:
            front((min(x, outer), max(x, outer)), (near, near), -0.2)
        # Left to right as the camera sees them: a house on the left begins at its near end.
        front((x, x), (z0, far) if side < 0 else (far, z0), -side)
        if pitched:
            middle, ridge = (x + outer) / 2, tall + pitched
            slope = ((x, tall, z0), (x, tall, far), (middle, ridge, far), (middle, ridge, z0))
            colour = stage.tint(roof, (z0 + far) / 2, -side)
            stage.canvas.fill(stage.camera.project(*np.array(slope).T), colour, Label.BUILDING)
            if near > 1.5:
                gable = ((x, tall, near), (outer, tall, near), (middle, ridge, near))
                corners = stage.camera.project(*np.array(gable).T)
                stage.canvas.convex(corners, stage.tint(wall, near, -0.2), Label.BUILDING)

    return far, draw_house


def _front(
    stage: Stage,
    floors: int,
    colours: tuple[Colour, Colour],
    tall: float,
    xs: tuple[float, float],
    zs: tuple[float, float],
    facing: float,
) -> None:
    """One wall of a house, `xs` and `zs` being its left and right ends; far ones are without windows."""
    (x0, x1), (z0, z1) = xs, zs
    corners = stage.camera.project(
        *np.array([(x0, tall, z0), (x1, tall, z1), (x1, 0.0, z1), (x0, 0.0, z0)]).T
    )
    left, right = float(corners[:, 0].min()), float(corners[:, 0].max())
    if not stage.canvas.sees(left, right):
        return
    z = (z0 * z1) ** 0.5

    def tint(colour: Colour) -> Colour:
        return stage.tint(colour, z, facing)

    if right - left < 5 or stage.camera.scale(z) < 0.012 * stage.canvas.width:
        stage.canvas.convex(corners, tint(colours[0]), Label.BUILDING)
        return
    bays = max(1, round(max(abs(x1 - x0), abs(z1 - z0)) / 3.2))
    cell = 12 if stage.camera.scale(min(zs)) > 0.04 * stage.canvas.width else 8
    wall, glass = (tint(colour) for colour in colours)
    stage.canvas.picture(facade(stage.draw, floors, bays, wall, glass, cell, tint), corners, Label.BUILDING)


def _open_ground(stage: Stage, side: int, near: float, far: float, trees: bool) -> list[Item]:
    """A park: a backdrop of foliage with trees before it, or a lawn with a hedge."""
    items: list[Item] = []
    x, z, draw = stage.street.front(side), max(near, 2.0), stage.draw
    plant, spread, low, high = (draw_tree, (0.5, 9), 4, 11) if trees else (draw_bush, (0.3, 4), 0.8, 2.6)
    while z < far:
        items.append((z, partial(plant, stage, x + side * draw.uniform(*spread), z, draw.uniform(low, high))))
        z += draw.uniform(1.2, 5.0) * (1 + z / 40)
    return items


_WOOD = np.array([(-0.2, 0), (0.1, -0.7), (0.5, -1), (0.9, -0.7), (1.2, 0)])
_BLOCK = np.array([(0, 0), (0, -1), (1, -1), (1, 0)])


def draw_skyline(stage: Stage) -> None:
    """Far roofs and woods along the horizon."""
    canvas, camera, draw = stage.canvas, stage.camera, stage.draw
    x = -20.0
    while x < canvas.width + 20:
        wide, tall = draw.uniform(0.03, 0.12) * canvas.width, draw.uniform(0.0, 0.14) * canvas.height
        base = np.array([x, camera.horizon + camera.roll * (x - camera.centre) + 2])
        if draw.chance(0.55):
            colour = stage.tint(stage.look.season, draw.uniform(70, 130))
            canvas.convex(base + _WOOD * (wide, tall * 0.7), colour, Label.PLANT)
        else:
            colour = stage.tint(_WALLS[draw.below(len(_WALLS))], draw.uniform(70, 130))
            canvas.convex(base + _BLOCK * (wide, tall), colour, Label.BUILDING)
        x += wide * draw.uniform(0.5, 1.2)
