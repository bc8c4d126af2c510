"""What is in effect in resolved recipes, and in what two of them differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cirkd_ray.config.composition import flatten
from cirkd_ray.config.settings import computes
from cirkd_ray.config.spec import RunSpec


def paths_of(spec: RunSpec) -> dict[str, Any]:
    """Every dotted path of a resolved recipe, subtrees included."""
    found: dict[str, Any] = {}
    for path, value in flatten(spec.to_dict()).items():
        parts = path.split(".")
        for count in range(1, len(parts)):
            found.setdefault(".".join(parts[:count]), None)
        found[path] = value
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
    for path, wanted in settings.items():
        leaves = flatten({path: wanted}) if isinstance(wanted, dict) else {path: wanted}
        for leaf, value in leaves.items():
            missing = leaf not in found
            if value is None and any(path.startswith(f"{leaf}.") for path in found):
                wrong.append(f"something at {leaf}, not null")
                continue
            if missing and value is None:
                continue  # null removes an entry
            if missing or not _equal(found[leaf], value):
                wrong.append(f"{leaf}={'nothing' if missing else repr(found[leaf])}, not {value!r}")
    return wrong


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    if isinstance(wanted, str) and not isinstance(
        found, str
    ):  # YAML reads 1e-3 as a text, pydantic as a number
        try:
            return bool(float(wanted) == found)
        except ValueError:
            return False
    return bool(found == wanted)
