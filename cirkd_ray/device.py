"""Which device, and in which arithmetic."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from cirkd_ray.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def local_device(setting: str) -> torch.device:
    """The device of `cluster.device` in this process.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def share_cores(processes: int, loaders: int = 0) -> None:
    """Bound this process's threads to its share of the machine's cores, unless OMP_NUM_THREADS says how many.

    Args:
        processes: that compute on this machine, this one among them.
        loaders: processes of each of them that load data, on a core each.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = len(os.sched_getaffinity(0)) // processes - loaders
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share)))


def choose_precision(setting: str, device: torch.device) -> str:
    """`auto` is bf16 on CUDA devices that have it, else fp32.

    Raises:
        ConfigError: fp16 on a CPU, where it would need loss scaling that no CPU kernel supports well.
    """
    if setting == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision: fp16 needs a CUDA device; use fp32 or bf16 on CPUs")
    return setting


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of that precision; fp32 is no autocast."""
    enabled = precision != "fp32"
    dtype = DTYPES[precision] if enabled else None
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler, active for fp16 only."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
