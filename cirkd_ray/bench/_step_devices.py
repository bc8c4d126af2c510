"""What the makers say that devices can do at most."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Peaks of a device: dense products in 16 bits, TF32 and float32, and memory traffic, all a second."""

    half: float
    tf32: float
    single: float
    memory: float

    def seconds(self, kind: str, flops: int, moved: int) -> float:
        """The least time of one operation: the longer of its arithmetic and its memory traffic."""
        rate = {"bfloat16": self.half, "float16": self.half, "tf32": self.tf32}.get(kind, self.single)
        return max(flops / rate, moved / self.memory)


PEAKS = {
    "H200": Peak(989e12, 495e12, 67e12, 4.8e12),
    "H100": Peak(989e12, 495e12, 67e12, 3.35e12),
    "A100": Peak(312e12, 156e12, 19.5e12, 2.0e12),
    "L40S": Peak(362e12, 183e12, 91.6e12, 0.864e12),
    "L4": Peak(121e12, 60e12, 30.3e12, 0.3e12),
    "A10": Peak(125e12, 62.5e12, 31.2e12, 0.6e12),
    "V100": Peak(125e12, 15.7e12, 15.7e12, 0.9e12),
    "T4": Peak(65e12, 8.1e12, 8.1e12, 0.32e12),
    "4090": Peak(165e12, 82.6e12, 82.6e12, 1.01e12),
}
"""By a word of torch's name of the device (data sheets, without sparsity; A100 with 80 GB, H100 as SXM)."""


def peak_of(device: torch.device) -> Peak | None:
    """The peaks of the device, None where they are not known."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((peak for word, peak in PEAKS.items() if word in words), None)
