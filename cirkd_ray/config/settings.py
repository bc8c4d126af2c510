"""What each setting of a recipe is, by its dotted path, as the annotations of fields and classes say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache, reduce
from operator import or_

from pydantic import BaseModel

from cirkd_ray.config.registry import DATASETS, LOSSES, TASK_LOSSES, network_models
from cirkd_ray.config.roles import Role, Setting
from cirkd_ray.config.sections import DataSpec, LossSpec, ModelSpec, TaskLossSpec
from cirkd_ray.config.spec import RunSpec

NAMED = {
    ModelSpec: network_models,
    DataSpec: DATASETS.models,
    LossSpec: LOSSES.models,
    TaskLossSpec: TASK_LOSSES.models,
}
"""Open section -> the settings of all classes that it can name."""


@lru_cache(maxsize=4096)
def role_of(path: str, spec: type[BaseModel] = RunSpec) -> Role:
    """The roles of the setting at a dotted path: its own and those of the sections that it lies in.

    A section also has the roles of what it holds, but as a whole it is neither `WEIGHT` nor `MUTABLE`. A
    class's setting is known by its name: it has the same roles in all losses (data sets, networks). A path
    that no annotation describes `COMPUTES`.
    """
    at, roles = Setting(section=spec), Role(0)
    for name in path.split("."):
        at = _within(at, name)
        roles |= at.roles
    held = reduce(or_, (role for _, role in fields_of(at)), Role(0))
    return roles | (held & ~(Role.MUTABLE | Role.WEIGHT))


def computes(path: str) -> bool:
    """Whether a recipe's setting decides the figures, so that a run is resumed with the same value."""
    return Role.COMPUTES in role_of(path)


@cache
def paths_with(role: Role, spec: type[BaseModel] = RunSpec) -> tuple[str, ...]:
    """Paths of the fields with a role, without the settings of classes; `*` stands for a free name."""
    return tuple(path for path, roles in fields_of(Setting(section=spec)) if role in roles)


def fields_of(section: Setting) -> Iterator[tuple[str, Role]]:
    """Path and roles of every field in a section, those of sections in it included."""
    for name, setting in section.inside().items():
        if not setting.inside():
            yield name, setting.roles
        for path, roles in fields_of(setting):
            yield f"{name}.{path}", setting.roles | roles


def _within(at: Setting, name: str) -> Setting:
    inside = at.inside()
    if name in inside or "*" in inside:
        return inside.get(name) or inside["*"]
    models = NAMED[at.section]() if at.section in NAMED else []
    said = [Setting(section=model).inside()[name].roles for model in models if name in model.model_fields]
    return Setting(reduce(or_, said, Role(0)) or Role.COMPUTES)
