"""Data sets, one a file, found by name; augmentation, order and loading as pure functions of (seed, n).

Add a data set: one file here, with a class under `@DATASETS.register(NAME)` (see `base.py`, `ade20k.py`).
Its settings in recipes, its checks (`tests/contract/test_datasets.py`) and `cirkd data` follow from it.
"""

from cirkd_ray.data.base import DATASETS, Sample, SegmentationDataset
from cirkd_ray.data.build import build_dataset

__all__ = ["DATASETS", "Sample", "SegmentationDataset", "build_dataset"]
