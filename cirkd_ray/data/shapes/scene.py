"""A whole street scene from random numbers: weather, street, everything on it, and the camera's faults."""

from __future__ import annotations

from bisect import bisect
from functools import partial

import cv2
import numpy as np

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.shapes.canvas import Camera, Canvas, Colour, Points
from cirkd_ray.data.shapes.ground import cast, draw_ground, light_ground
from cirkd_ray.data.shapes.objects import draw_car, draw_person, draw_pole, draw_tree
from cirkd_ray.data.shapes.roadside import Item, draw_skyline, line_side
from cirkd_ray.data.shapes.stage import Chance, Label, Look, Stage, Street
from cirkd_ray.data.shapes.textures import noise_window
from cirkd_ray.types import ClassSet

CLASSES = ClassSet(
    tuple(label.name.lower() for label in Label),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (107, 142, 35), (70, 130, 180), (220, 220, 0),
        (220, 20, 60), (0, 0, 142),
    ),
)  # fmt: skip


def draw_street(rng: np.random.Generator, height: int, width: int) -> tuple[UInt8, UInt8]:
    """Draw one scene.

    Returns:
        The image, height x width x 3 uint8 RGB, and its labels, height x width uint8 (`Label`).
    """
    stage = _set_up(rng, height, width)
    _draw_sky(stage)
    draw_skyline(stage)
    draw_ground(stage)
    items, shadows = _furnish(stage)
    light_ground(stage, shadows)
    for _, draw in sorted(items, key=lambda item: -item[0]):
        draw()
    return _expose(stage), stage.canvas.label


def _set_up(rng: np.random.Generator, height: int, width: int) -> Stage:
    """Camera, weather and street."""
    draw = Chance(rng)
    uniform = draw.uniform
    camera = Camera(
        focal=uniform(0.55, 1.0) * width,
        centre=uniform(0.3, 0.7) * width,
        horizon=uniform(0.34, 0.52) * height,
        height=uniform(1.2, 2.3),
        roll=uniform(-0.03, 0.03),
        bend=uniform(-1, 1) ** 3 * 0.006,
        slant=uniform(-0.06, 0.06),
    )
    pavement = (uniform(1.2, 4.0), uniform(1.2, 4.0))
    garden = (max(0.0, uniform(-2, 4)), max(0.0, uniform(-2, 4)))
    street = Street(uniform(2.8, 6.5), pavement, garden)
    return Stage(Canvas(height, width), camera, _weather(draw), street, draw)


# Weather: colours at the zenith and at the horizon, colour of the light, amplitude of the clouds.
_SKIES: tuple[tuple[Colour, Colour, Colour, float], ...] = (
    ((86, 138, 204), (178, 205, 228), (1.05, 1.02, 0.96), 22.0),
    ((168, 172, 178), (206, 208, 210), (0.84, 0.86, 0.88), 12.0),
    ((120, 130, 150), (236, 190, 140), (1.0, 0.86, 0.7), 20.0),
    ((60, 70, 92), (104, 108, 122), (0.5, 0.53, 0.62), 10.0),
    ((196, 200, 202), (224, 224, 222), (0.95, 0.95, 0.95), 6.0),
)
_SKY_ODDS = (0.34, 0.6, 0.74, 0.88)
_SEASONS: tuple[Colour, ...] = (
    (70, 96, 48), (86, 108, 50), (54, 78, 52), (142, 112, 48), (128, 84, 50), (98, 92, 72),
)  # fmt: skip


def _weather(draw: Chance) -> Look:
    zenith, horizon, ambient, clouds = _SKIES[bisect(_SKY_ODDS, draw.random())]
    sun = draw.below(3) - 1 if clouds > 11 else 0
    strength = 0.15 + 0.3 * draw.random() if sun else 0.12
    density = 0.004 + 0.02 * draw.random() ** 2
    season = _SEASONS[draw.below(len(_SEASONS))]
    return Look(ambient, sun, strength, horizon, density, (zenith, horizon), clouds, season)


def _draw_sky(stage: Stage) -> None:
    canvas, look = stage.canvas, stage.look
    rows = int(min(canvas.height, max(1, stage.camera.horizon + 0.05 * canvas.width)))
    share = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None] ** 0.8
    sky = np.array(look.sky[0], np.float32) * (1 - share) + np.array(look.sky[1], np.float32) * share
    window = noise_window("clouds", stage.draw, rows, canvas.width, canvas.width / 200)
    canvas.image[:rows] = np.clip(sky + look.clouds * np.maximum(window, -0.7)[:, :, None], 0, 255)
    canvas.label[:] = Label.SKY


def _furnish(stage: Stage) -> tuple[list[Item], list[Points]]:
    """Everything that stands on the ground, with its distance, and the shadows."""
    items: list[Item] = []
    shadows: list[Points] = []
    built = stage.draw.uniform(0.15, 0.95)
    for side in (-1, 1):
        items += line_side(stage, side, built)
        _furnish_pavement(stage, side, items, shadows)
    _traffic(stage, items, shadows)
    if stage.look.sun and built > 0.4:
        # The row of houses on the sun's side darkens part of the street.
        front, zs = stage.street.front(stage.look.sun), np.geomspace(1.3, 100, 10)
        reach = front - stage.look.sun * stage.draw.uniform(1, 12)
        near, far = (stage.camera.project(x, 0.0, zs) for x in (front + stage.look.sun * 4, reach))
        shadows.append(np.concatenate([near, far[::-1]]))
    return items, shadows


def _furnish_pavement(stage: Stage, side: int, items: list[Item], shadows: list[Points]) -> None:
    street, draw, uniform = stage.street, stage.draw, stage.draw.uniform
    kerb, edge = street.kerb(side) + side * 0.35, street.edge(side)
    z, step = uniform(4, 9), uniform(6, 14)
    while z < 70:
        items.append((z, partial(draw_pole, stage, kerb, z)))
        shadows.append(cast(stage, kerb, z, 0.15, 5.0))
        z += step * uniform(0.7, 1.3)
    if draw.chance(0.45):
        z, step = uniform(4, 15), uniform(6, 16)
        while z < 90:
            items.append((z, partial(draw_tree, stage, kerb + side * 0.3, z, uniform(4, 9))))
            shadows.append(cast(stage, kerb, z, 3.0, 5.0))
            z += step
    for _ in range(draw.count(2.2)):
        z, x = 2.6 + 9 * draw.random(), uniform(kerb, edge)
        tall = uniform(1.5, 1.92) if draw.chance(0.85) else uniform(0.95, 1.4)
        items.append((z, partial(draw_person, stage, x, z, tall)))
        shadows.append(cast(stage, x, z, 0.5, tall))


def _traffic(stage: Stage, items: list[Item], shadows: list[Points]) -> None:
    half, draw, uniform = stage.street.half, stage.draw, stage.draw.uniform
    for side in (-1, 1):
        if half > 3.4 and draw.chance(0.55):
            z = uniform(4, 16)
            while z < 75:
                if draw.chance(0.7):
                    _car(stage, side * (half - 1.05), z, items, shadows)
                z += uniform(5.2, 8)
    for _ in range(draw.count(1.8)):
        lane = uniform(-1, 1) * max(half - 3.2, 0.8)
        _car(stage, lane, uniform(7, 60), items, shadows)
    if draw.chance(0.12):
        z = uniform(9, 22)
        items.append((z, partial(draw_car, stage, uniform(-half, half), z, True)))
    for _ in range(draw.count(0.7)):
        z = uniform(4, 14)
        items.append((z, partial(draw_person, stage, uniform(-half, half), z, uniform(1.5, 1.9))))


def _car(stage: Stage, x: float, z: float, items: list[Item], shadows: list[Points]) -> None:
    items.append((z, partial(draw_car, stage, x, z)))
    xs, zs = np.array([-1.05, 1.05, 1.05, -1.05]), np.array([-2.4, -2.4, 2.3, 2.3])
    shadows.append(stage.camera.project(x + xs - 0.7 * stage.look.sun, 0.0, z + zs))


# Deviation of brightness by class, per mille: grain of surfaces, foliage.
_GRAIN = np.zeros(256, np.float32)
_GRAIN[: len(Label)] = [0, 20, 60, 45, 30, 40, 50, 25]
_LEAVES = np.zeros(256, np.float32)
_LEAVES[Label.PLANT] = 100


def _expose(stage: Stage) -> UInt8:
    """Surface texture, exposure, colour cast, blur and noise."""
    draw, label = stage.draw, stage.canvas.label
    height, width = label.shape
    grain = max(1.0, height / 160)
    texture = cv2.LUT(label, _GRAIN / 1000) * noise_window("grain", draw, height, width, grain)
    texture += cv2.LUT(label, _LEAVES / 1000) * noise_window("leaves", draw, height, width, grain)
    texture += 1
    gain = draw.uniform(0.65, 1.35)
    balance = [np.float32(gain * draw.uniform(0.9, 1.1)) for _ in range(3)]
    noise = np.float32(draw.uniform(2.0, 10.0))
    sensor = cv2.merge([noise_window("sensor", draw, height, width) * noise for _ in range(3)])
    image = cv2.multiply(stage.canvas.image, cv2.merge([texture * c for c in balance]), dtype=cv2.CV_32F)
    if draw.chance(0.4):
        image = cv2.GaussianBlur(image, (0, 0), draw.uniform(0.4, 0.9) * height / 128)
    exposed: UInt8 = cv2.add(image, sensor, dtype=cv2.CV_8U)
    return exposed
