"""Procedural street scenes: what the data set `shapes` draws."""

from cirkd_ray.data.street.scene import CLASSES, draw_street

__all__ = ["CLASSES", "draw_street"]
