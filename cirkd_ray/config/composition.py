"""Recipes as trees of plain values: read YAML, resolve `extends`, apply overrides by dotted path.

One function, `apply_overrides`, serves the command line's `--set` and the sweeps alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cirkd_ray.config.roles import Role
from cirkd_ray.config.settings import paths_with, role_of
from cirkd_ray.config.spec import RunSpec, TeacherSpec
from cirkd_ray.errors import ConfigError, nearest

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_INHERITED = tuple(key for key in RunSpec.model_fields if Role.RECIPE in role_of(key))
"""What speaks of one recipe only, and not of those that extend it."""
Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice, which it would otherwise drop silently."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} given twice", key_node.start_mark
            )
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """The content of a YAML text; the recipes of a family are in one, which each of them reads."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist, is no YAML (with line and column) or holds something else.
    """
    try:
        tree = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; a recipe is a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}") from None
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds {type(tree).__name__}"
        raise ConfigError(f"{path}: expected a mapping of settings, this file {found}")
    return tree


class Source(NamedTuple):
    """Where a recipe stands: a YAML file, or one of the `runs` of a file that holds a family of them."""

    path: Path
    run: str | None = None

    def read(self) -> Tree:
        """Its tree, before `extends`."""
        tree = read_yaml(self.path)
        if self.run is None:
            if set(tree) == {"runs"}:
                raise ConfigError(
                    f"{self.path}: holds several recipes; name one of {', '.join(_family(self.path))}"
                )
            return tree
        found = tree["runs"][self.run] or {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self.path}: runs.{self.run} is {found!r}, not a mapping of settings")
        return found


def _family(path: Path) -> list[str]:
    """The names in a file that holds a family of recipes."""
    tree = read_yaml(path)
    runs = tree.get("runs")
    if set(tree) != {"runs"} or not isinstance(runs, dict):
        return []
    return list(runs)


def recipe_names() -> list[str]:
    """Names of the shipped recipes; whatever starts with `_` is a part of recipes, not one."""
    names = []
    for path in RECIPES.rglob("*.yaml"):
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        names += [f"{name}/{run}" for run in _family(path)] or [name]
    return sorted(n for n in names if not any(part.startswith("_") for part in n.split("/")))


def find_recipe(name: str, where: str = "RECIPE", beside: Path | None = None) -> Source:
    """A recipe by its shipped name, or by the path of a YAML file (also relative to the folder `beside`).

    Raises:
        ConfigError: there is none; `where` says what names it.
    """
    shipped, family = RECIPES / f"{name}.yaml", RECIPES / f"{Path(name).parent}.yaml"
    if shipped.is_file():
        return Source(shipped)
    if family.is_file() and Path(name).name in _family(family):
        return Source(family, Path(name).name)
    for base in [beside, Path.cwd()] if beside else [Path.cwd()]:
        path = (base / name).expanduser()
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return Source(path.resolve())
    if Path(name).suffix in (".yaml", ".yml"):
        raise ConfigError(f"{name}: no such file; give a YAML file or a shipped name (`cirkd recipes list`)")
    hint = nearest(name, recipe_names())
    raise ConfigError(f"{where}: no recipe {name!r}{hint} (`cirkd recipes list` shows all)")


def merge(base: Any, change: Any) -> Any:
    """`change` laid over `base`: mappings merge key by key, everything else replaces."""
    if isinstance(base, dict) and isinstance(change, dict):
        return {
            key: merge(base.get(key), change[key]) if key in change else base[key]
            for key in {**base, **change}
        }
    return deepcopy(change)


def compose(source: Source, _chain: tuple[Source, ...] = ()) -> Tree:
    """The recipe at `source` over everything that it `extends`, first to last."""
    if source in _chain:
        names = [item.run or item.path.name for item in (*_chain, source)]
        raise ConfigError(f"{source.path}: extends itself through {' -> '.join(names)}")
    tree = _beside(dict(source.read()), source.path)
    extends = tree.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise ConfigError(f"{source.path}: extends takes a recipe's name or a list of names")
    result: Tree = {}
    for parent in parents:
        over = compose(find_recipe(parent, str(source.path), source.path.parent), (*_chain, source))
        result = merge(_without_displaced(result, over), over)
    inherited = {key: value for key, value in result.items() if key not in NOT_INHERITED}
    return dict(merge(_without_displaced(inherited, tree), tree))


def _beside(tree: Tree, path: Path) -> Tree:
    """A file's tree in which a relative `data.root` is relative to the file, not to the working folder."""
    data = tree.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("root"), str):
        return tree
    return {**tree, "data": {**data, "root": beside(path, data["root"])}}


def beside(path: Path, place: str) -> str:
    """A folder that the file at `path` names; addresses (s3://...) stay as they are."""
    return place if "://" in place else str(path.parent / Path(place).expanduser())


def _without_displaced(base: Tree, change: Tree) -> Tree:
    """`base` without its teacher's source and its data set's own settings, where `change` gives others."""
    result = dict(base)
    for section, kept in (("data", _kept_data), ("teacher", _kept_teacher)):
        held, given = base.get(section), change.get(section)
        if isinstance(held, dict) and isinstance(given, dict):
            result[section] = kept(held, given)
    return result


def _kept_data(held: Tree, given: Tree) -> Tree:
    """What is common to all data sets, where another one is named."""
    before = held.get("name")
    if before is None or given.get("name", before) == before:
        return held
    return {key: value for key, value in held.items() if f"data.{key}" in paths_with(Role.COMMON)}


def _kept_teacher(held: Tree, given: Tree) -> Tree:
    """A teacher has one source: one that is given displaces another."""
    displaced = {k for k in TeacherSpec.SOURCES if held.get(k) is not None and k not in given}
    if not any(given.get(k) is not None for k in TeacherSpec.SOURCES):
        return held
    gone = displaced | ({"set"} if "train" in displaced else set())
    return {k: v for k, v in held.items() if k not in gone}


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as (path, value); the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text!r}: expected PATH=VALUE, e.g. --set optim.lr=0.01")
    try:
        return path.strip(), yaml.safe_load(value) if value.strip() else None
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML; quote it") from None


def apply_overrides(tree: Tree, overrides: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with each dotted path set to its value; missing mappings on the way are made.

    Whether a path means anything is decided by the validation that follows.
    """
    change: Tree = {"teacher": {}, "data": {}}
    for path, value in overrides.items():
        section, _, key = path.partition(".")
        if section in change and key:
            change[section][key] = value
    result = deepcopy(_without_displaced(tree, change))
    for path, value in overrides.items():
        node = result
        *parents, leaf = path.split(".")
        for index, part in enumerate(parents):
            child = node.get(part)
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                at = ".".join(parents[: index + 1])
                raise ConfigError(f"{path}: {at} is {child!r}, not a mapping of settings")
            node = child
        node[leaf] = deepcopy(value)
    return result


def overrides_from(texts: Iterable[str]) -> Tree:
    """The overrides of a command line, later ones winning."""
    return dict(parse_override(text) for text in texts)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of every leaf; an empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves[path] = value
    return leaves
