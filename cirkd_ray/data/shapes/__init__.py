"""The embedded data set: street scenes that are drawn, nothing to download."""

from cirkd_ray.data.shapes.dataset import Shapes
from cirkd_ray.data.shapes.scene import CLASSES, draw_street

__all__ = ["CLASSES", "Shapes", "draw_street"]
