"""Every shipped search space means what it says: paths exist, bounds are valid recipes, pairs go together."""

from __future__ import annotations

import pytest

from cirkd_ray.config import from_tree
from cirkd_ray.config.applied import differences
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.sweep.space_check import base_run, check_space
from cirkd_ray.sweep.space_file import load_space, space_names


def test_the_spaces_of_the_issue_are_shipped() -> None:
    names = {"cirkd_core", "cirkd_weights", "kd_methods", "pareto", "schedule", "pbt_weights", "smoke"}
    assert names | {"camvid_cirkd"} <= set(space_names())


@pytest.mark.parametrize("name", space_names())
def test_a_shipped_space_is_valid_against_its_recipe(name: str) -> None:
    check_space(load_space(name))


@pytest.mark.parametrize("name", space_names())
def test_drawn_configurations_are_in_effect_in_the_recipe_they_give(name: str) -> None:
    space = load_space(name)
    base = base_run(space).to_dict()
    for values in space.spec.random_points(12):
        settings = space.spec.settings(values)
        assert settings
        assert differences(from_tree(apply_overrides(base, settings)), settings) == []
