"""cirkd_channel against its equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.losses.hashing import pixel_bits, random_slots
from tests.contract.loss_cases import TEACHER, make_inputs, small_labels, small_loss
from tests.unit.test_losses_cirkd_minibatch import row_divergences

SETTINGS = {"length": 4, "channel_memory": 20, "channel_keys": 9, "candidates": 6, "kd_temperature": 2.0}
JOINED = {"gather": True}


def vectors(x: Tensor, valid: Tensor) -> Tensor:
    """C x L unit vectors of one image."""
    x = (x * valid).flatten(1)
    return x / x.norm(dim=1, keepdim=True)


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    labels = small_labels(inputs)
    pooled = [
        torch.nn.functional.avg_pool2d(o.feature, 4, ceil_mode=True) for o in (inputs.student, inputs.teacher)
    ]
    pooled[0] = loss.projector(pooled[0])
    rows: list[list[Tensor]] = [[], []]
    for n in range(len(labels)):
        blocks = [[labels[n, y : y + 4, x : x + 4] for x in (0, 4)] for y in (0, 4)]
        valid = torch.tensor([[bool((b != -1).any()) for b in line] for line in blocks])
        for images, x in zip(rows, pooled, strict=True):
            images.append(vectors(x[n], valid))
    student, teacher = rows
    queue, ptr = loss.channel.queue[0].clone(), int(loss.channel.ptr)
    key = (inputs.seed, inputs.step, inputs.micro)
    bits = pixel_bits(len(labels), TEACHER, 0, labels.device, "channels", *key)
    for n in range(len(labels)):
        for c in sorted(range(TEACHER), key=lambda c: int(bits[n, c]))[:3]:
            queue[ptr] = teacher[n][c]
            ptr = (ptr + 1) % len(queue)
    keys = queue[random_slots(len(queue), 9, labels.device, "memory_channel", *key)]
    q, p = (torch.softmax(torch.cat(x) @ keys.T / 0.1 / 2.0, 1) for x in (student, teacher))
    return {
        "minibatch_channel": torch.cat(row_divergences(student, teacher, 0.1)).mean(),
        "memory_channel": 4.0 * (p * (p / q).log()).sum(1).mean(),
        "channel_mse": (torch.cat(student) - torch.cat(teacher)).square().mean(),
    }


def test_other_crop_than_the_queue() -> None:
    with pytest.raises(ConfigError, match=r"cirkd_channel.*4 pooled pixels.*set length: 4"):
        small_loss("cirkd_channel", length=5)(make_inputs())


def test_memory_smaller_than_the_draw() -> None:
    with pytest.raises(ConfigError, match=r"cirkd_channel.*channel_memory=8.*channel_keys=9"):
        small_loss("cirkd_channel", channel_memory=8)
