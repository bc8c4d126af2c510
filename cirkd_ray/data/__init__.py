"""Data sets, one a file, found by name; augmentation, order and loading as pure functions of (seed, n)."""

from cirkd_ray.data.base import DATASETS, Sample, SegmentationDataset
from cirkd_ray.data.build import build_dataset

__all__ = ["DATASETS", "Sample", "SegmentationDataset", "build_dataset"]
