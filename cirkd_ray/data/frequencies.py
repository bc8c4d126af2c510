"""How often each class occurs, from some of a split's label maps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cirkd_ray.data.base import SegmentationDataset, spread
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.tally import counts_of

MAPS = 256
"""Label maps that are read: from the first to the last, at equal distances."""


def class_shares(data: SegmentationDataset) -> Tensor:
    """K float64: each class's share of the labelled pixels of up to `MAPS` label maps.

    Raises:
        DataError: a label map cannot be read.
    """
    total = np.zeros(256, np.int64)
    for index in spread(len(data), MAPS):
        label = data.load_label(index, None) if isinstance(data, FileDataset) else data.load(index).label
        total += counts_of(label)
    counts = torch.from_numpy(total[: len(data.classes)]).to(torch.float64)
    return counts / counts.sum().clamp(min=1)
