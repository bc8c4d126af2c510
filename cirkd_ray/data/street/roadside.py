"""What lines the street: houses, walls, fences, hedges, parks; and the skyline behind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cirkd_ray.data.street.canvas import Colour, Points
from cirkd_ray.data.street.objects import draw_crown, draw_tree
from cirkd_ray.data.street.stage import Label, Stage
from cirkd_ray.data.street.textures import facade

Item = tuple[float, Callable[[], None]]
"""A drawing and the distance that orders it: the farthest is drawn first."""

_WALLS: tuple[Colour, ...] = (
    (168, 156, 138), (142, 92, 74), (196, 186, 168), (112, 110, 108), (150, 158, 164), (182, 148, 110), (96,
    88, 84), (204, 202, 198), (126, 138, 150),
)  # fmt: skip
_REACH = 110.0


def line_side(stage: Stage, side: int, built: float) -> list[Item]:
    """One side of the street from near to far; `built` is the share of it that has houses."""
    items: list[Item] = []
    z = stage.uniform(-8.0, 1.0)
    while z < _REACH:
        roll = stage.rng.random()
        if roll < built:
            long = stage.uniform(8.0, 24.0)
            items += _house(stage, side, z, z + long)
        else:
            long = stage.uniform(5.0, 18.0)
            items += _open_ground(stage, side, z, z + long, roll < built + 0.5 * (1 - built))
        if stage.chance(0.4 if stage.street.garden[side > 0] > 0.6 else 0.1):
            items += _fence(stage, side, z, z + long)
        z += long + (stage.uniform(1.0, 5.0) if stage.chance(0.3) else 0.0)
    return items


def _house(stage: Stage, side: int, near: float, far: float) -> list[Item]:
    floors, set_back = int(stage.rng.integers(1, 7)), stage.uniform(0.0, 1.5)
    tall, deep = 3.2 * floors + stage.uniform(0.4, 1.2), stage.uniform(8, 16)
    wall = stage.vary(_WALLS[int(stage.rng.integers(len(_WALLS)))], 26)
    # Glass fronts mirror the sky: as bright and blue as it is.
    glass = stage.look.sky[1] if stage.chance(0.2) else stage.vary((64.0, 72.0, 82.0), 28)
    roof = stage.vary((112.0, 66.0, 52.0) if stage.chance(0.5) else (80.0, 80.0, 86.0), 22)
    pitched = stage.uniform(1.5, 3.5) if stage.chance(0.5) and floors < 5 else 0.0

    def draw() -> None:
        x = stage.street.front(side) + side * set_back
        outer = x + side * deep
        z0, z1 = max(near, 1.3), far
        front = facade(stage.rng, floors, max(1, round((far - near) / 3.2)), _bytes(wall), _bytes(glass))
        if near < z0:
            front = front[:, int(front.shape[1] * (z0 - near) / (far - near)) :]
        if z0 < z1 and front.shape[1] > 1:
            _gable(stage, x, outer, near, tall, floors, wall, glass)
            _wall_picture(stage, front, x, z0, z1, tall, -side)
        if pitched:
            ridge = np.array([[x, tall, z0], [x, tall, z1], [(x + outer) / 2, tall + pitched, z1]])
            ridge = np.vstack([ridge, [(x + outer) / 2, tall + pitched, z0]])
            colour = stage.tint(roof, (z0 + z1) / 2, -side)
            stage.canvas.fill(stage.camera.project(*ridge.T), colour, Label.BUILDING)

    return [(far, draw)]


def _gable(
    stage: Stage, x: float, outer: float, near: float, tall: float, floors: int, wall: Colour, glass: Colour
) -> None:
    """The end of a house that looks towards the camera, where it is not too close to be seen."""
    if near < 1.5:
        return
    left, right = min(x, outer), max(x, outer)
    xs, ys = np.array([left, right, right, left]), np.array([tall, tall, 0.0, 0.0])
    colour = stage.tint(wall, near, -0.2)
    if stage.camera.scale(near) > 9:
        front = facade(stage.rng, floors, max(1, round((right - left) / 3.5)), _bytes(wall), _bytes(glass))
        stage.canvas.picture(
            _lit(stage, front, near, -0.2), stage.camera.project(xs, ys, near), Label.BUILDING
        )
    else:
        stage.canvas.convex(stage.camera.project(xs, ys, near), colour, Label.BUILDING)


def _wall_picture(
    stage: Stage, front: Points, x: float, z0: float, z1: float, tall: float, facing: float
) -> None:
    """A texture on a wall along the street, its distance growing from z0 to z1."""
    # In the texture, columns are metres: the camera's perspective squeezes the far ones.
    order = front if x > 0 else front[:, ::-1]
    zs = (z0, z1) if x > 0 else (z1, z0)
    ys, depths = np.array([tall, tall, 0.0, 0.0]), np.array([zs[0], zs[1], zs[1], zs[0]])
    corners = stage.camera.project(x, ys, depths)
    lit = _lit(stage, np.ascontiguousarray(order), (z0 * z1) ** 0.5, facing)
    stage.canvas.picture(lit, corners, Label.BUILDING)


def _lit(stage: Stage, texture: Points, z: float, facing: float) -> Points:
    """A texture in this light at distance z."""
    black, white = (
        np.array(stage.tint((0, 0, 0), z, facing)),
        np.array(stage.tint((128, 128, 128), z, facing)),
    )
    return np.clip(
        texture * ((white - black) / 128).astype(np.float32) + black.astype(np.float32), 0, 255
    ).astype(np.uint8)


def _bytes(colour: Colour) -> Points:
    return np.array(colour).astype(np.uint8)


def _open_ground(stage: Stage, side: int, near: float, far: float, trees: bool) -> list[Item]:
    """A park: a backdrop of foliage with trees before it, or a lawn with a hedge."""
    x, items = stage.street.front(side), []
    z = max(near, 2.0)
    while z < far:
        if trees:
            place, tall, at = x + side * stage.uniform(0.5, 9), stage.uniform(4, 11), z
            items.append((z, _later(draw_tree, stage, place, at, tall)))
        else:
            place, tall, at = x + side * stage.uniform(0.3, 4), stage.uniform(0.8, 2.6), z
            items.append((z, _later(_bush, stage, place, at, tall)))
        z += stage.uniform(1.2, 5.0) * (1 + z / 40)
    return items


def _later(draw: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: draw(*arguments)


def _bush(stage: Stage, x: float, z: float, tall: float) -> None:
    k, wide = stage.camera.scale(z), tall * stage.uniform(1.2, 3.0)
    if k * tall < 2:
        return
    top = stage.camera.project(x, tall, z)
    draw_crown(stage, top[0] - wide * k / 2, top[1], (wide * k, tall * 1.12 * k), z)


def _fence(stage: Stage, side: int, near: float, far: float) -> list[Item]:
    """Boards as solid as a wall, or bars that show what lies behind; all of it is fence."""
    x, tall = stage.street.edge(side) + side * 0.15, stage.uniform(0.8, 2.0)
    boards, colour = (
        stage.chance(0.5),
        stage.vary((120.0, 98.0, 76.0) if stage.chance(0.5) else (92.0, 94.0, 96.0), 40),
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
        wide, tall = stage.uniform(0.03, 0.12) * canvas.width, stage.uniform(0.0, 0.14) * canvas.height
        base = camera.horizon + camera.roll * (x - camera.centre) + 2
        if stage.chance(0.55):
            colour = stage.tint(stage.look.season, stage.uniform(70, 130))
            draw = np.array([x, base]) + np.array(
                [(-0.2, 0), (0.1, -0.7), (0.5, -1), (0.9, -0.7), (1.2, 0)]
            ) * (wide, tall * 0.7)
            canvas.convex(draw, colour, Label.TREE)
        else:
            colour = stage.tint(_WALLS[int(stage.rng.integers(len(_WALLS)))], stage.uniform(70, 130))
            canvas.convex(
                np.array([x, base]) + np.array([(0, 0), (0, -1), (1, -1), (1, 0)]) * (wide, tall),
                colour,
                Label.BUILDING,
            )
        x += wide * stage.uniform(0.5, 1.2)
