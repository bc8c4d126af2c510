"""What af_dcd refuses."""

from __future__ import annotations

from cirkd_ray.errors import ConfigError
from tests.contract.loss_cases import make_inputs, small_loss
from tests.errors import refuses

SETTINGS = {"pool": 1, "patch": 2, "groups": 4, "temperature": 2.0}


def test_groups_must_divide_the_channels() -> None:
    with refuses("loss 'af_dcd'", ConfigError, "groups=3", 8):
        small_loss("af_dcd", groups=3)


def test_maps_without_a_patch_are_refused() -> None:
    with refuses("loss 'af_dcd'", ConfigError, "4 x 4", "pool", "patch"):
        small_loss("af_dcd", pool=4, patch=4)(make_inputs())
