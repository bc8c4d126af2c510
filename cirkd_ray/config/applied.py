"""What is in effect in resolved recipes, and in what two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from cirkd_ray.config.composition import Tree, apply_overrides, flatten
from cirkd_ray.config.load import from_tree
from cirkd_ray.config.settings import computes
from cirkd_ray.config.spec import RunSpec
from cirkd_ray.errors import ConfigError


def applied(tree: Tree, settings: Mapping[str, Any], only: str | None = None) -> RunSpec:
    """The resolved recipe with these settings.

    Raises:
        ConfigError: they do not fit it, or one of them (or the one at `only`) is not in effect.
    """
    spec = from_tree(apply_overrides(tree, dict(settings)))
    differing = differences(spec, settings if only is None else {only: settings[only]})
    if differing:
        raise ConfigError(f"recipe: resolved to {differing[0]}")
    return spec


def paths_of(spec: RunSpec) -> dict[str, Any]:
    """Every dotted path of a resolved recipe with its value; that of a subtree is None."""
    found: dict[str, Any] = {}
    for path, value in flatten(spec.to_dict()).items():
        found |= {**dict.fromkeys(accumulate(path.split("."), "{}.{}".format)), path: value}
    return found


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], counts: Callable[[str], bool] = computes
) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (before, now) of each setting that counts and differs, in the order of the alphabet.

    A setting that one tree lacks is null there, and so is an empty mapping.
    """
    one, two = ({k: v for k, v in flatten(tree).items() if v != {}} for tree in (before, now))
    pairs = {path: (one.get(path), two.get(path)) for path in sorted({**one, **two})}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1] and counts(path)}


def differences(spec: RunSpec, settings: Mapping[str, Any]) -> list[str]:
    """Settings that are not in effect in a resolved recipe, as `PATH=FOUND, not WANTED`."""
    found = paths_of(spec)
    wrong = []
    leaves = (item for path, wanted in settings.items() for item in flatten({path: wanted}).items())
    for leaf, value in leaves:  # two settings may speak of one leaf
        if value is None and any(path.startswith(f"{leaf}.") for path in found):
            wrong.append(f"something at {leaf}, not null")
        elif leaf not in found and value is not None:  # null removes an entry
            wrong.append(f"{leaf}=nothing, not {value!r}")
        elif leaf in found and not _equal(found[leaf], value):
            wrong.append(f"{leaf}={found[leaf]!r}, not {value!r}")
    return wrong


def _equal(found: Any, wanted: Any) -> bool:
    """Whether two values are the same; YAML reads 1e-3 as a text, pydantic as a number."""
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    if isinstance(wanted, str) and not isinstance(found, str):
        try:
            return bool(float(wanted) == found)
        except ValueError:
            return False
    return bool(found == wanted)
