"""From a recipe's name and overrides to a validated, resolved RunSpec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cirkd_ray.config.composition import RECIPES, Tree, apply_overrides, compose, find_recipe, overrides_from
from cirkd_ray.config.registry import validate
from cirkd_ray.config.resolution import resolved_tree
from cirkd_ray.config.spec import RunSpec
from cirkd_ray.remote.address import without_secrets


def parse(tree: Mapping[str, Any], where: str = "") -> RunSpec:
    """Validate the shape of a tree, without looking at the classes it names (cheap: no torch).

    Raises:
        ConfigError: every unknown key or wrong value with its path and the nearest valid name.
    """
    return validate(RunSpec, without_secrets(tree), where)


def from_tree(tree: Mapping[str, Any]) -> RunSpec:
    """A resolved RunSpec: the settings of named classes are checked and their defaults filled in.

    `from_tree(spec.to_dict())` of a resolved spec is that spec.
    """
    return parse(resolved_tree(parse(tree)))


def load_tree(recipe: str, where: str = "RECIPE") -> Tree:
    """The composed tree of a recipe, before overrides; `where` says what names it."""
    source = find_recipe(recipe, where)
    tree = compose(source)
    tree.setdefault("name", recipe if source.path.is_relative_to(RECIPES) else source.path.stem)
    return tree


def load_run(recipe: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> RunSpec:
    """Load a recipe, apply overrides, validate and resolve it.

    Args:
        recipe: a shipped recipe's name or a path to a YAML file.
        overrides: `PATH=VALUE` texts, or a mapping from dotted path to value.

    Raises:
        ConfigError: whatever is wrong, with the path of the setting.
    """
    changes = overrides if isinstance(overrides, Mapping) else overrides_from(overrides)
    return from_tree(apply_overrides(load_tree(recipe), changes))
