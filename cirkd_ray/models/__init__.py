"""Segmentation networks: timm encoders under the field's heads."""

from cirkd_ray.models.build import build_model
from cirkd_ray.types import SegmentationOutput

__all__ = ["SegmentationOutput", "build_model"]
