"""cirkd_v2 is its parts on one context feature."""

from __future__ import annotations

import torch

from cirkd_ray.bench._losses_naive import cirkd_minibatch
from tests.contract.loss_cases import make_inputs, small_loss
from tests.unit import test_losses_cirkd_memory

MEMORY = {k: v for k, v in test_losses_cirkd_memory.SETTINGS.items() if k != "pixel_candidates"}
SETTINGS = {**MEMORY, "length": 4, "channel_memory": 40, "channel_keys": 9, "pixel_memory": 40}
JOINED = {"group": "batch"}


def test_without_context_the_feature_is_compared_itself() -> None:
    loss, inputs = small_loss("cirkd_v2", context=False), make_inputs()
    expected = cirkd_minibatch(loss.minibatch, inputs)["minibatch_pixel"]
    torch.testing.assert_close(loss(inputs)["minibatch_pixel"], expected)


def test_parts_without_a_weight_are_not_built() -> None:
    loss = small_loss("cirkd_v2", active=frozenset({"memory_pixel", "channel_mse"}))
    names = {name.split(".")[0] for name, _ in loss.named_parameters()}
    assert names == {"context", "memory", "channel"}
    assert {name for name, _ in loss.named_buffers() if name.endswith("queue")} == {"memory.pixel.queue"}
