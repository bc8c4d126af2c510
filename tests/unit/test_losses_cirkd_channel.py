"""What cirkd_channel refuses."""

from __future__ import annotations

from cirkd_ray.errors import ConfigError
from tests.contract.loss_cases import make_inputs, small_loss
from tests.errors import refuses

SETTINGS = {"length": 4, "channel_memory": 20, "channel_keys": 9, "candidates": 6, "kd_temperature": 2.0}
JOINED = {"group": "batch"}


def test_other_crop_than_the_queue() -> None:
    with refuses("loss 'cirkd_channel'", ConfigError, "4 pooled", "length: 4"):
        small_loss("cirkd_channel", length=5)(make_inputs())


def test_memory_smaller_than_the_draw() -> None:
    with refuses("loss 'cirkd_channel'", ConfigError, "channel_memory=8", "channel_keys=9"):
        small_loss("cirkd_channel", channel_memory=8)
