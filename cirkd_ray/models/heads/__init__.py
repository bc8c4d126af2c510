"""Segmentation heads: one a file, found by name."""

from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Head

__all__ = ["HEADS", "EncoderInfo", "Head"]
