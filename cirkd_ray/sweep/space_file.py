"""Reading a search-space file: shipped by name or by path; every error names the file's line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import cirkd_ray
from cirkd_ray.config.composition import Tree, apply_overrides, beside, overrides_from, read_yaml
from cirkd_ray.config.registry import _fields_at
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.remote.address import without_secrets
from cirkd_ray.sweep.parameters import Parameter
from cirkd_ray.sweep.space import SweepSpec

Location = tuple[str | int, ...]
OF_THE_SPACE = tuple(
    name for name in SweepSpec.model_fields if name not in ("set", "parameters", "description")
)


@dataclass(frozen=True)
class SpaceFile:
    """A space and where each of its settings stands."""

    path: Path
    spec: SweepSpec
    lines: dict[Location, int]

    def error(self, location: Sequence[str | int], message: str) -> ConfigError:
        """An error that names the line of the setting at `location`."""
        return ConfigError(f"{_place(self.path, self.lines, tuple(location))}: {message}")


def spaces_folder() -> Path:
    """The shipped spaces: in the installed package, or beside it in a checkout."""
    package = Path(cirkd_ray.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def space_names() -> list[str]:
    """Names of the shipped spaces."""
    return sorted(path.stem for path in spaces_folder().glob("*.yaml"))


def find_space(name: str) -> Path:
    """A shipped space by its name, or a YAML file by its path."""
    shipped, path = spaces_folder() / f"{name}.yaml", Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path.absolute()
        raise ConfigError(f"{name}: no such file; shipped spaces: {', '.join(space_names())}")
    if not shipped.is_file():
        raise ConfigError(
            f"{name}: no such search space{nearest(name, space_names())} (or give the path of a YAML file)"
        )
    return shipped


def load_space(name: str, overrides: Iterable[str] = ()) -> SpaceFile:
    """Read and validate a space.

    Args:
        name: a shipped space's name or a YAML file.
        overrides: `PATH=VALUE`; paths that begin with a setting of the space (`budget.trials`, `recipe`, ...)
            change the space, all others the recipe of every trial.

    Raises:
        ConfigError: every wrong setting with its line.
    """
    path = find_space(name)
    tree = read_yaml(path)
    lines = line_numbers(path)
    changes = overrides_from(overrides)
    own = {key: value for key, value in changes.items() if key.split(".")[0] in OF_THE_SPACE}
    tree = apply_overrides(tree, own)
    if isinstance(tree.get("set"), dict | None):
        settings: Tree = dict(tree.get("set") or {})
        for values, key in ((settings, "data.root"), (settings.get("data"), "root")):
            if isinstance(values, dict) and isinstance(root := values.get(key), str):
                values[key] = beside(path, root)
        tree["set"] = {**settings, **{k: v for k, v in changes.items() if k not in own}}
    tree.setdefault("name", path.stem)
    return SpaceFile(path, _validated(without_secrets(tree), path, lines), lines)


def _validated(tree: Tree, path: Path, lines: dict[Location, int]) -> SweepSpec:
    try:
        return SweepSpec.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(item, path, lines) for item in error.errors()[:5])) from None


def _sentence(item: Any, path: Path, lines: dict[Location, int]) -> str:
    location: Location = item["loc"]
    place = _place(path, lines, location)
    if item["type"] == "extra_forbidden":
        return f"{place}: no such setting{nearest(str(location[-1]), _known(location[:-1]))}"
    shown = "" if item["type"] == "missing" else f" (got {item['input']!r})"
    return f"{place}: {item['msg'].removeprefix('Value error, ')}{shown}"


def _known(location: Location) -> list[str]:
    if len(location) == 2 and location[0] == "parameters":
        return list(Parameter.model_fields)
    return _fields_at(SweepSpec, location)


def _place(path: Path, lines: dict[Location, int], location: Location) -> str:
    """`FILE:LINE: a.b.c`, with the line of the nearest enclosing setting that stands in the file."""
    known = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in lines), None)
    line = f":{lines[known]}" if known else ""
    return f"{path}{line}: {'.'.join(map(str, location))}"


def line_numbers(path: Path) -> dict[Location, int]:
    """Line of every key and item of a YAML file."""
    found: dict[Location, int] = {}

    def walk(node: yaml.Node | None, at: Location) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*at, key.value)] = key.start_mark.line + 1
                walk(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found[(*at, index)] = value.start_mark.line + 1
                walk(value, (*at, index))

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ())
    return found
