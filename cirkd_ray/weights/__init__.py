"""Everybody's weights: recognised, read, converted, fetched, saved and exported."""

from cirkd_ray.weights.loading import convert_reference
from cirkd_ray.weights.package import LoadedModel, load_model, save_model

__all__ = ["LoadedModel", "convert_reference", "load_model", "save_model"]
