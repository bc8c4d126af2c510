"""What tests of a device share: the settings of the process are put back after each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used


@pytest.fixture(autouse=True)
def _arithmetic_as_before() -> Iterator[None]:
    import torch

    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
