"""Whether the losses' queues and layers fit into the free memory of a device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cirkd_ray.device import available_bytes
from cirkd_ray.errors import ConfigError


def refuse_if_too_large(size: int, device: torch.device, what: str) -> None:
    """Raise a `ConfigError` when `size` bytes do not fit into the device's free memory."""
    free = available_bytes(device)
    if free is not None and size > free:
        raise ConfigError(
            f"{what}: needs {size / 2**30:.3g} GiB, {device} has {free / 2**30:.3g} GiB free; lower the "
            "queues' size (pixel_memory, region_memory) or set storage: bfloat16"
        )


def require_memory(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Check that the losses' parameters and buffers fit on `device`, before they are moved there.

    Raises:
        ConfigError: names what is needed and what is free.
    """
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    size = sum(t.nbytes for t in tensors if t.device != device)
    refuse_if_too_large(size, device, "distill.losses")
