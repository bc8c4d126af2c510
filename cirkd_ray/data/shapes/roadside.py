"""What lines the street: houses, walls, fences, hedges, parks; and the skyline behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cirkd_ray.data.shapes.canvas import Colour
from cirkd_ray.data.shapes.objects import draw_crown, draw_tree
from cirkd_ray.data.shapes.stage import Label, Stage
from cirkd_ray.data.shapes.textures import facade

Item = tuple[float, Callable[[], None]]
"""A drawing and the distance that orders it: the farthest is drawn first."""

_WALLS: tuple[Colour, ...] = (
    (168, 156, 138), (142, 92, 74), (196, 186, 168), (112, 110, 108), (150, 158, 164), (182, 148, 110), (96,
    88, 84), (204, 202, 198), (126, 138, 150),
)  # fmt: skip
_REACH = 90.0


def line_side(stage: Stage, side: int, built: float) -> list[Item]:
    """One side of the street from near to far; `built` is the share of it that has houses."""
    items: list[Item] = []
    z = stage.draw.uniform(-8.0, 1.0)
    while z < _REACH:
        roll = stage.draw.random()
        if roll < built:
            long = stage.draw.uniform(8.0, 24.0)
            items += _house(stage, side, z, z + long)
        else:
            long = stage.draw.uniform(5.0, 18.0)
            items += _open_ground(stage, side, z, z + long, roll < built + 0.5 * (1 - built))
        if stage.draw.chance(0.5 if stage.street.garden[side > 0] > 0.6 else 0.2):
            items += _fence(stage, side, z, z + long)
        z += long + (stage.draw.uniform(1.0, 5.0) if stage.draw.chance(0.3) else 0.0)
    return items


def _house(stage: Stage, side: int, near: float, far: float) -> list[Item]:
    floors, set_back = 1 + stage.draw.below(6), stage.draw.uniform(0.0, 1.5)
    tall, deep = 3.2 * floors + stage.draw.uniform(0.4, 1.2), stage.draw.uniform(8, 16)
    wall = stage.draw.vary(_WALLS[stage.draw.below(len(_WALLS))], 26)
    # Glass fronts mirror the sky: as bright and blue as it is.
    glass = stage.look.sky[1] if stage.draw.chance(0.2) else stage.draw.vary((64.0, 72.0, 82.0), 28)
    roof = stage.draw.vary((112.0, 66.0, 52.0) if stage.draw.chance(0.5) else (80.0, 80.0, 86.0), 22)
    pitched = stage.draw.uniform(1.5, 3.5) if stage.draw.chance(0.5) and floors < 5 else 0.0

    def draw() -> None:
        x = stage.street.front(side) + side * set_back
        outer, z0 = x + side * deep, max(near, 1.3)
        if far <= z0 + 0.5:
            return
        if near > 1.5:
            _front(stage, floors, wall, glass, tall, (min(x, outer), max(x, outer)), (near, near), -0.2)
        # Left to right as the camera sees them: a house on the left begins at its near end.
        zs = (z0, far) if side < 0 else (far, z0)
        _front(stage, floors, wall, glass, tall, (x, x), zs, -side)
        if pitched:
            middle = (x + outer) / 2
            ridge = (
                (x, tall, z0),
                (x, tall, far),
                (middle, tall + pitched, far),
                (middle, tall + pitched, z0),
            )
            colour = stage.tint(roof, (z0 + far) / 2, -side)
            stage.canvas.fill(stage.camera.project(*np.array(ridge).T), colour, Label.BUILDING)
            if near > 1.5:
                end = ((x, tall, near), (outer, tall, near), (middle, tall + pitched, near))
                corners = stage.camera.project(*np.array(end).T)
                stage.canvas.convex(corners, stage.tint(wall, near, -0.2), Label.BUILDING)

    return [(far, draw)]


def _front(
    stage: Stage,
    floors: int,
    wall: Colour,
    glass: Colour,
    tall: float,
    xs: tuple[float, float],
    zs: tuple[float, float],
    facing: float,
) -> None:
    """One wall of a house, `xs` and `zs` being its left and right ends; far ones are without windows."""
    corners = stage.camera.project(
        np.array([xs[0], xs[1], xs[1], xs[0]]),
        np.array([tall, tall, 0.0, 0.0]),
        np.array([zs[0], zs[1], zs[1], zs[0]]),
    )
    left, right = float(corners[:, 0].min()), float(corners[:, 0].max())
    if not stage.canvas.sees(left, right):
        return
    z = (zs[0] * zs[1]) ** 0.5

    def tint(colour: Colour) -> Colour:
        return stage.tint(colour, z, facing)

    if right - left < 5 or stage.camera.scale(z) < 0.012 * stage.canvas.width:
        stage.canvas.convex(corners, tint(wall), Label.BUILDING)
        return
    length = max(abs(xs[1] - xs[0]), abs(zs[1] - zs[0]))
    cell = 12 if stage.camera.scale(min(zs)) > 0.04 * stage.canvas.width else 8
    texture = facade(stage.draw, floors, max(1, round(length / 3.2)), tint(wall), tint(glass), cell, tint)
    stage.canvas.picture(texture, corners, Label.BUILDING)


def _open_ground(stage: Stage, side: int, near: float, far: float, trees: bool) -> list[Item]:
    """A park: a backdrop of foliage with trees before it, or a lawn with a hedge."""
    x, items = stage.street.front(side), []
    z = max(near, 2.0)
    while z < far:
        if trees:
            place, tall, at = x + side * stage.draw.uniform(0.5, 9), stage.draw.uniform(4, 11), z
            items.append((z, later(draw_tree, stage, place, at, tall)))
        else:
            place, tall, at = x + side * stage.draw.uniform(0.3, 4), stage.draw.uniform(0.8, 2.6), z
            items.append((z, later(_bush, stage, place, at, tall)))
        z += stage.draw.uniform(1.2, 5.0) * (1 + z / 40)
    return items


def later(draw: Callable[..., None], *arguments: object) -> Callable[[], None]:
    """The call of `draw` with these arguments, for when its turn comes."""
    return lambda: draw(*arguments)


def _bush(stage: Stage, x: float, z: float, tall: float) -> None:
    k, wide = stage.camera.scale(z), tall * stage.draw.uniform(1.2, 3.0)
    if k * tall < 2:
        return
    top = stage.camera.point(x, tall, z)
    draw_crown(stage, top[0] - wide * k / 2, top[1], (wide * k, tall * 1.12 * k), z)


def _fence(stage: Stage, side: int, near: float, far: float) -> list[Item]:
    """Boards as solid as a wall, or bars that show what lies behind; all of it is fence."""
    x, tall = stage.street.edge(side) + side * 0.15, stage.draw.uniform(0.8, 2.0)
    boards, colour = (
        stage.draw.chance(0.5),
        stage.draw.vary((120.0, 98.0, 76.0) if stage.draw.chance(0.5) else (92.0, 94.0, 96.0), 40),
    )
    z0, z1 = max(near, 1.5), far

    def draw() -> None:
        if z1 <= z0:
            return
        tinted = stage.tint(colour, (z0 * z1) ** 0.5, -side)
        ys, zs = np.array([0.0, tall, tall, 0.0]), np.array([z0, z0, z1, z1])
        outline = stage.camera.project(x, ys, zs)
        step = 0.5 if boards else 0.25
        posts = np.arange(z0, min(z1, z0 + 22.0), step * (1 + z0 / 12))
        feet, tops = stage.camera.project(x, 0.0, posts), stage.camera.project(x, tall, posts)
        if boards:
            stage.canvas.convex(outline, tinted, Label.FENCE)
            tinted = (tinted[0] * 0.72, tinted[1] * 0.72, tinted[2] * 0.72)
        else:
            stage.canvas.mark(outline, Label.FENCE)
            stage.canvas.line(outline[[1, 2]], tinted, 0.07 * stage.camera.scale(z0), None)
        for foot, top in zip(feet, tops, strict=True):
            stage.canvas.line(np.stack([foot, top]), tinted, 1, None)

    return [(far - 0.01, draw)]


def draw_skyline(stage: Stage) -> None:
    """Far roofs and woods along the horizon."""
    canvas, camera = stage.canvas, stage.camera
    x = -20.0
    while x < canvas.width + 20:
        wide, tall = (
            stage.draw.uniform(0.03, 0.12) * canvas.width,
            stage.draw.uniform(0.0, 0.14) * canvas.height,
        )
        base = camera.horizon + camera.roll * (x - camera.centre) + 2
        if stage.draw.chance(0.55):
            colour = stage.tint(stage.look.season, stage.draw.uniform(70, 130))
            draw = np.array([x, base]) + np.array(
                [(-0.2, 0), (0.1, -0.7), (0.5, -1), (0.9, -0.7), (1.2, 0)]
            ) * (wide, tall * 0.7)
            canvas.convex(draw, colour, Label.TREE)
        else:
            colour = stage.tint(_WALLS[stage.draw.below(len(_WALLS))], stage.draw.uniform(70, 130))
            canvas.convex(
                np.array([x, base]) + np.array([(0, 0), (0, -1), (1, -1), (1, 0)]) * (wide, tall),
                colour,
                Label.BUILDING,
            )
        x += wide * stage.draw.uniform(0.5, 1.2)
