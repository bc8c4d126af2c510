"""The rule by which the reference networks of the golden numbers were filled: weights from names."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of that reference name: float32, or int64 zeros for `num_batches_tracked`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) <= 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
