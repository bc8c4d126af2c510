"""A recorded teacher on a device: the network's maps but for rounding, and no wait after the first batch."""

from __future__ import annotations

import copy

import pytest
import torch

from cirkd_ray.models import build_model
from cirkd_ray.train.frozen import cast_weights, freeze
from cirkd_ray.train.recorded import Recorded
from cirkd_ray.train.shared import SharedForward
from tests.gpu.subjects import ARITHMETIC, no_waits

BOUNDS = {"fp32": 5e-3, "fp16": 5e-3, "bf16": 4e-2}
"""Norm of the difference from float32 on the CPU over that of the map; on CUDA fp32 multiplies in TF32."""


@pytest.mark.parametrize(("device", "precision"), ARITHMETIC)
def test_it_gives_the_networks_maps(device: str, precision: str) -> None:
    torch.manual_seed(0)
    model = build_model("deeplabv3_resnet18", num_classes=5).eval()
    images = torch.randn(2, 3, 128, 192)
    expected = SharedForward(copy.deepcopy(model), "fp32", torch.device("cpu")).teach(images)
    freeze(model, [])
    model.to(device, memory_format=torch.channels_last)
    cast_weights(model, precision)
    there = images.to(device).contiguous(memory_format=torch.channels_last)
    recorded = Recorded(model, precision)
    recorded(there)
    with no_waits(device):
        found = recorded(there)
    for name in ("logits", "feature"):
        wanted, value = getattr(expected, name), getattr(found, name).float().cpu()
        assert (value - wanted).norm() <= BOUNDS[precision] * wanted.norm(), name
