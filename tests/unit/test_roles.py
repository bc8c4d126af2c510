"""Every setting says what it is, and what follows from that is what it was when it stood in lists."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from cirkd_ray.config import load_run
from cirkd_ray.config.applied import changed
from cirkd_ray.config.composition import NOT_INHERITED, flatten, recipe_names
from cirkd_ray.config.registry import DATASETS, LOSSES, network_models
from cirkd_ray.config.roles import Mutable, Role, Setting, read
from cirkd_ray.config.settings import NAMED, computes, fields_of, paths_with, role_of
from cirkd_ray.config.spec import RunSpec
from cirkd_ray.sweep.space import SweepSpec, is_kept

NATURES = Role.COMPUTES | Role.COSMETIC | Role.MACHINE | Role.PLACE | Role.RECIPE
"""A setting has one of these at least; the others say more of it."""


def without_nature(spec: type[BaseModel]) -> list[str]:
    return [path for path, roles in fields_of(Setting(section=spec)) if not roles & NATURES]


@pytest.mark.parametrize("spec", [RunSpec, SweepSpec])
def test_every_field_says_what_it_is(spec: type[BaseModel]) -> None:
    assert without_nature(spec) == []


def test_a_field_that_says_nothing_is_found() -> None:
    class Inner(BaseModel):
        known: Mutable[float] = 0.0
        new: int | None = None

    class Outer(BaseModel):
        parts: dict[str, Inner | None]

    assert without_nature(Outer) == ["parts.*.new"]


def class_settings() -> Iterator[tuple[str, str, Role]]:
    """(class, setting, what its annotation says) of every registered class."""
    for models in NAMED.values():
        for model in models():
            for name, setting in Setting(section=model).inside().items():
                yield model.__name__, name, setting.roles


def test_a_setting_of_a_class_says_nothing_or_what_it_is() -> None:
    found = list(class_settings())
    assert {name for name, _, _ in found} >= {"CirkdMemorySettings", "ShapesSettings", "NetworkSettings"}
    assert [item for item in found if item[2] and not item[2] & NATURES] == []


@pytest.mark.parametrize("models", [network_models, DATASETS.models, LOSSES.models])
def test_one_name_has_the_same_roles_in_all_classes_of_a_kind(models: object) -> None:
    assert callable(models)
    said: dict[str, set[Role]] = {}
    for model in models():
        for name, setting in Setting(section=model).inside().items():
            said.setdefault(name, set()).add(setting.roles)
    assert {name: roles for name, roles in said.items() if len(roles) > 1} == {}


def test_roles_lie_in_each_other_and_are_read_through_unions_and_mappings() -> None:
    assert role_of("data.workers") == Role.COMMON | Role.MACHINE | Role.EQUAL | Role.COHORT
    assert read(dict[str, Mutable[float]] | None).inside()["*"].roles == Role.COMPUTES | Role.MUTABLE
    assert Role.WEIGHT in role_of("distill.losses.mine.weights.kd")
    assert Role.WEIGHT not in role_of("distill.losses.mine.weights")  # as a whole
    assert computes("teacher")  # null where there is none: what it holds computes
    assert not computes("published")
    assert computes("no.such.setting")  # nothing unknown may change unseen


def test_what_may_change_when_a_run_is_resumed() -> None:
    free = {path for path, roles in fields_of(Setting(section=RunSpec)) if Role.COMPUTES not in roles}
    cluster = {"workers", "device", "cpus_per_worker", "max_failures", "async_checkpoints", "autoscaling"}
    cluster |= {"gpus_per_worker", "hang_timeout", "preemption_interval", "storage_timeout", "disk"}
    assert free == {
        *(f"cluster.{name}" for name in cluster),
        *(
            "data.root",
            "data.workers",
            "train.log_every",
            "train.keep_checkpoints",
            "train.pictures",
            "train.loggers",
        ),
        *("name", "description", "train.export", "baseline"),
        *(f"published.{name}" for name in ("miou", "split", "source", "note")),
    }


FREE = (
    *(
        "cluster.",
        "data.root",
        "data.workers",
        "train.log_every",
        "train.keep_checkpoints",
        "train.pictures",
        "train.loggers",
    ),
    *("name", "description", "published", "train.export", "baseline"),
)
EQUAL = ("train.", "data.", "model.", "optim.", "task.")
FIXED = (
    *("cluster.", "teacher.train", "teacher.set", "train.validate_every", "train.checkpoint_every"),
    *("name", "seed"),
)
MUTABLE = re.compile(
    r"(optim\.(lr|power|clip_grad_norm)|task\.(weight|aux_weight)"
    r"|task\.losses\.[^.]+\.(weight|gamma|threshold|least)"
    r"|distill\.losses\.[^.]+\.(weight|weights\.[^.]+|temperature|kd_temperature|schedule\.[^.]+))$"
)
WEIGHT = re.compile(r"distill\.losses\.[^.]+\.(weight|weights\.[^.]+)$|task\.losses\.[^.]+\.weight$")
SHAPING = re.compile(r"(model|teacher)\.|distill(\.losses)?$|distill\.losses\.[^.]+(\.[^.]+)?$")
PLACES = ("data.root", "model.weights", "teacher.weights", "teacher.model.weights")


def every_path() -> list[str]:
    """The paths of all settings of the shipped recipes, of all losses and of all fields."""
    found = {path.replace("*", "x") for path, _ in fields_of(Setting(section=RunSpec))}
    for name in recipe_names():
        found |= set(flatten(load_run(name).to_dict()))
    for model in LOSSES.models():
        found |= {f"distill.losses.x.{name}" for name in model.model_fields}
    return sorted(found)


def names_or_holds(path: str, names: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{path}.") for name in names)


def test_what_follows_from_the_roles_is_what_stood_in_lists() -> None:
    """The lists are those of commit 20c209f, where each stood beside what used it."""
    paths = every_path()
    assert len(paths) > 150
    for path in paths:
        role = role_of(path)
        free = path.startswith(FREE)
        assert (Role.COMPUTES not in role) == free, path
        assert ((Role.EQUAL | Role.COMPUTES) in role) == (path.startswith(EQUAL) and not free), path
        assert (Role.HELD in role) == (path.startswith("cluster.") or names_or_holds(path, FIXED)), path
        assert (Role.MUTABLE in role) == bool(MUTABLE.match(path)), path
        assert (Role.WEIGHT in role) == bool(WEIGHT.match(path)), path
        assert (Role.SHAPES in role) == path.startswith(("model.", "teacher", "distill")), path
        assert (Role.SHAPES in role) or not SHAPING.match(path), path
        assert (Role.STUDENT in role) == path.startswith("model."), path
        assert (Role.PLACE in role) == names_or_holds(path, PLACES), path


def test_sections_are_held_where_they_hold_what_is_held() -> None:
    for path in ("teacher", "train", "cluster"):
        assert Role.HELD in role_of(path)
        assert Role.MUTABLE not in role_of(path)
    for path in ("teacher.model", "optim", "distill.losses.x.schedule", "distill.losses.x.weights"):
        assert not role_of(path) & (Role.HELD | Role.MUTABLE)
    for path in ("distill", "distill.losses", "distill.losses.x", "teacher.model", "model"):
        assert Role.SHAPES in role_of(path)


def test_what_concerns_recipes_tells_or_is_common() -> None:
    assert NOT_INHERITED == ("name", "description", "published")
    assert paths_with(Role.COSMETIC) == (
        *(
            "train.log_every",
            "train.export",
            "train.keep_checkpoints",
            "train.pictures",
            "train.loggers",
            "baseline",
        ),
    )
    common = ("crop", "scale_range", "scale_step", "flip", "max_class_share")
    common += ("color_jitter", "blur", "erase", "paste", "workers")
    assert paths_with(Role.COMMON) == tuple(f"data.{name}" for name in common)


def test_what_decides_resources() -> None:
    machine = {path for path in paths_with(Role.MACHINE) if not path.startswith("cluster.")}
    assert machine == {"train.batch_size", "train.accumulate", "data.workers"}
    assert paths_with(Role.MACHINE | Role.COMPUTES) == ("train.batch_size", "train.accumulate")


def test_what_a_cohort_shares() -> None:
    """Issue 13: data, augmentation, batch, seed, teacher, workers, the cadence of validation.

    Of `train` also what decides the values that the teacher's forward pass gives.
    """
    shared = set(paths_with(Role.COHORT))
    assert {path for path in shared if path.startswith("train.")} == {
        f"train.{name}"
        for name in (
            *("batch_size", "accumulate", "validate_every", "validate_limit", "validate_batch_size"),
            *("validate_window", "validate_stride"),
            *("precision", "relations", "relations_path", "channels_last", "compile", "deterministic"),
        )
    }
    assert {path.split(".")[0] for path in shared} == {"seed", "teacher", "data", "cluster", "train"}


def test_what_may_change_when_a_sweep_is_resumed() -> None:
    free = {path for path, _ in fields_of(Setting(section=SweepSpec)) if not is_kept(path)}
    resources = {
        f"resources.{name}"
        for name in ("workers", "cpus_per_worker", "gpus_per_worker", "device", "concurrent", "pack", "disk")
    }
    assert free == {"description", "budget.hours", *resources}
    of_the_runs = {path for path in every_path() if not is_kept(f"set.{path}")}
    assert of_the_runs == {
        path
        for path in every_path()
        if path.startswith(("cluster.", "data.workers")) or path in paths_with(Role.COSMETIC)
    }


def test_two_recipes_differ_in_what_counts_alone() -> None:
    free = ["name=other", "cluster.workers=2", "data.workers=2"]
    changes = ["optim.lr=1", "teacher.set=[train.steps=3]", *free]
    before, now = load_run("quickstart"), load_run("quickstart", changes)
    found = changed(before.to_dict(), now.to_dict())
    assert list(found) == ["optim.lr", "teacher.set"]
    assert found["optim.lr"] == (before.optim.lr, 1.0)
    assert changed({"a": {}}, {"a": None}) == {} == changed({}, {"a": {"b": None}})
