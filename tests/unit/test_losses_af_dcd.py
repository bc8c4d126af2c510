"""What af_dcd refuses."""

from __future__ import annotations

import pytest

from cirkd_ray.errors import ConfigError
from tests.contract.loss_cases import make_inputs, small_loss

SETTINGS = {"pool": 1, "patch": 2, "groups": 4, "temperature": 2.0}


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"af_dcd.*groups=3.*8 channels"):
        small_loss("af_dcd", groups=3)


def test_maps_without_a_patch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"af_dcd.*lower pool or patch"):
        small_loss("af_dcd", pool=4, patch=4)(make_inputs())
