"""Laws of composition and overrides, over trees that nobody thought of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cirkd_ray.config import load_tree
from cirkd_ray.config.composition import (
    NOT_INHERITED,
    Tree,
    apply_overrides,
    flatten,
    merge,
    overrides_from,
    parse_override,
)
from cirkd_ray.config.roles import Role
from cirkd_ray.config.sections import DataSpec
from cirkd_ray.config.settings import paths_with
from cirkd_ray.config.spec import TeacherSpec

NAMES = st.sampled_from(["a", "b", "c", "optim", "model", "lr"])
TEXTS, LISTS = st.text("xy: '#", max_size=4), st.lists(st.integers(0, 3))
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | TEXTS | LISTS
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=3),
    lambda inner: st.dictionaries(NAMES, VALUES | inner, max_size=3),
    max_leaves=8,
)
FEW = settings(max_examples=60, deadline=None)


@contextmanager
def written(**recipes: Tree) -> Iterator[dict[str, str]]:
    """Recipe files; name -> path."""
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.yaml" for name in recipes}
        for name, tree in recipes.items():
            paths[name].write_text(yaml.safe_dump(tree))
        yield {name: str(path) for name, path in paths.items()}


@FEW
@given(TREES, TREES, TREES)
def test_merge(one: Tree, two: Tree, three: Tree) -> None:
    before = deepcopy((one, two))
    assert merge(one, {}) == one == merge({}, one) == merge(one, one)
    found = merge(one, two)
    assert merge(found, two) == found
    assert set(found) == set(one) | set(two)
    assert merge(found, three) == merge(one, merge(two, three)) or _replaced(two, three)
    assert (one, two) == before


def _replaced(two: Any, three: Any) -> bool:
    """Whether `three` lays a mapping over what is none in `two`: that alone depends on the order."""
    if not (isinstance(two, dict) and isinstance(three, dict)):
        return isinstance(three, dict)
    return any(_replaced(two[key], three[key]) for key in two.keys() & three.keys())


@FEW
@given(TREES)
def test_a_tree_is_what_its_leaves_say(tree: Tree) -> None:
    before = deepcopy(tree)
    assert apply_overrides(tree, flatten(tree)) == tree == before
    assert apply_overrides({}, flatten(tree)) == tree
    assert flatten(apply_overrides({}, flatten(tree))) == flatten(tree)


@FEW
@given(TREES, TREES)
def test_overrides_of_leaves_are_a_merge(base: Tree, change: Tree) -> None:
    """Where no path leads through a value, and no empty mapping stands for a full one."""
    leaves = {path: value for path, value in flatten(change).items() if value != {}}
    assume(not any(flatten(base).get(path) not in (None, {}) for path in _sections(change)))
    assert apply_overrides(base, leaves) == merge(base, apply_overrides({}, leaves))


def _sections(tree: Tree, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}"
            yield from _sections(value, f"{prefix}{key}.")


@FEW
@given(st.dictionaries(NAMES, VALUES, min_size=1), VALUES)
def test_the_later_override_wins(values: dict[str, Any], last: Any) -> None:
    path = next(iter(values))
    texts = [f"s.{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in values.items()]
    found = overrides_from([*texts, f"s.{path}={yaml.safe_dump(last, default_flow_style=True)}"])
    assert apply_overrides({}, found) == {"s": {**values, path: last}}


@FEW
@given(st.lists(NAMES, min_size=1, max_size=3).map(".".join), VALUES)
def test_an_override_says_what_yaml_reads(path: str, value: Any) -> None:
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")
    assert parse_override(f"{path}={text}") == (path, value)
    assert parse_override(f" {path} = {text}") == (path, value)


@FEW
@given(TREES, TREES, TREES)
def test_extends_is_a_merge_from_first_to_last(one: Tree, two: Tree, own: Tree) -> None:
    recipes = {"first": one, "second": two, "mine": {**own, "extends": ["first.yaml", "second.yaml"]}}
    with written(**recipes) as paths:
        assert load_tree(paths["mine"]) == {**merge(merge(one, two), own), "name": "mine"}


@FEW
@given(TREES, st.sampled_from(NOT_INHERITED))
def test_what_speaks_of_one_recipe_is_not_inherited(tree: Tree, key: str) -> None:
    parent = {**tree, **dict.fromkeys(NOT_INHERITED, "the parent's")}
    mine = {"extends": "parent.yaml"}
    with written(parent=parent, mine=mine, other={**mine, key: "x"}) as paths:
        assert load_tree(paths["mine"]) == {**tree, "name": "mine"}
        assert load_tree(paths["other"])[key] == "x"


DATA = st.fixed_dictionaries(
    {"name": st.sampled_from(["shapes", "voc"])},
    optional=dict.fromkeys([*DataSpec.model_fields.keys() - {"name"}, "height", "subset"], st.integers(0, 9)),
)


@FEW
@given(DATA, DATA)
def test_another_data_set_keeps_what_is_common_to_all(held: Tree, given_: Tree) -> None:
    common = {path.removeprefix("data.") for path in paths_with(Role.COMMON)}
    kept = held if held["name"] == given_["name"] else {k: v for k, v in held.items() if k in common}
    for found in _laid_over("data", held, given_):
        assert found == {**kept, **given_}


SOURCE = st.sampled_from(TeacherSpec.SOURCES)


@FEW
@given(SOURCE, SOURCE, st.booleans())
def test_a_teacher_that_is_given_displaces_the_held_one(old: str, new: str, with_model: bool) -> None:
    model = {"model": {"name": "deeplabv3_resnet18"}} if with_model else {}
    held = {old: "old", **({"set": ["train.steps=1"]} if old == "train" else {}), **model}
    for found in _laid_over("teacher", held, {new: "new"}):
        assert [found.get(k) for k in TeacherSpec.SOURCES if found.get(k) is not None] == ["new"]
        assert ("set" in found) == (old == new == "train")
        assert found.get("model") == model.get("model")
    for found in _laid_over("teacher", held, {"model": {"name": "x"}}):
        assert found == {**held, "model": {"name": "x"}}


def _laid_over(section: str, held: Tree, change: Tree) -> Iterator[Tree]:
    """The section in a recipe that extends another, and after overrides that say the same."""
    with written(parent={section: held}, mine={"extends": "parent.yaml", section: change}) as paths:
        yield load_tree(paths["mine"])[section]
    yield apply_overrides({section: held}, flatten({section: change}))[section]
