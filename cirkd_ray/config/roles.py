"""What a setting is: the roles that fields and constructor arguments say in their annotations.

`lr: Mutable[PositiveFloat] = 0.02` is a positive number that a population may change. A setting may have
several roles: `workers: Common[Machine[int]]`. The roles of a section (`optim: Equal[OptimSpec]`) hold for
all settings in it. A setting of a named class (loss, data set, network) that says nothing `COMPUTES`.

Code that asks for a kind of settings (those that may change on resume, that must be equal in a comparison)
asks `config.settings`, which reads these annotations. There is no other list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Flag, auto
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel


class Role(Flag):
    """What a setting is: one of the first group (`COMPUTES` with another, too), and any of the second."""

    COMPUTES = auto()  # decides the figures of a run, which is resumed with the same value; others may change
    COSMETIC = auto()  # decides what a run tells and keeps
    MACHINE = auto()  # decides what a run takes of the cluster, and how
    PLACE = auto()  # says where files lie
    RECIPE = auto()  # speaks of one recipe, not of those that extend it

    MUTABLE = auto()  # a population may change it while the run trains
    WEIGHT = auto()  # weighs a loss or one of its terms, which is not built where the weight is 0
    SHAPES = auto()  # is given to what builds networks and losses
    STUDENT = auto()  # describes the student's network, and so decides its size and its speed
    EQUAL = auto()  # must be equal in a comparison, where it `COMPUTES`
    COHORT = auto()  # must be equal in a cohort, whose members share batches and one teacher
    COMMON = auto()  # is common to all data sets, and stays when another one is named
    HELD = auto()  # a sweep sets it itself


T = TypeVar("T")
Computes = Annotated[T, Role.COMPUTES]
Cosmetic = Annotated[T, Role.COSMETIC]
Machine = Annotated[T, Role.MACHINE]
Place = Annotated[T, Role.PLACE]
Recipe = Annotated[T, Role.RECIPE]
Mutable = Annotated[T, Role.COMPUTES | Role.MUTABLE]
Weight = Annotated[T, Role.COMPUTES | Role.MUTABLE | Role.WEIGHT]
Shapes = Annotated[T, Role.SHAPES]
Student = Annotated[T, Role.STUDENT]
Equal = Annotated[T, Role.EQUAL]
Cohort = Annotated[T, Role.COHORT]
Common = Annotated[T, Role.COMMON]
Held = Annotated[T, Role.HELD]


class Setting(NamedTuple):
    """What an annotation says.

    Attributes:
        roles: its own.
        section: the model whose fields are its settings, if it is a section.
        items: the annotation of each value, if it is a mapping with free names.
    """

    roles: Role = Role(0)
    section: type[BaseModel] | None = None
    items: Any = None

    def inside(self) -> Mapping[str, Setting]:
        """Name -> setting of what it holds; `*` stands for a free name."""
        if self.section is not None:
            return _fields(self.section)
        return {} if self.items is None else {"*": read(self.items)}


@cache
def _fields(section: type[BaseModel]) -> Mapping[str, Setting]:
    return {name: read(field.annotation, field.metadata) for name, field in section.model_fields.items()}


def read(annotation: Any, metadata: Iterable[Any] = ()) -> Setting:
    """Read the annotation of a field, whose `metadata` pydantic keeps apart."""
    roles = reduce(or_, (item for item in metadata if isinstance(item, Role)), Role(0))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = read(arguments[0], arguments[1:])
        return found._replace(roles=roles | found.roles)
    if origin in (Union, UnionType):
        options = [read(argument) for argument in arguments]
        holding = next((found for found in options if found.inside()), Setting())
        return holding._replace(roles=reduce(or_, (found.roles for found in options), roles))
    if origin in (dict, Mapping):
        return Setting(roles, items=arguments[1])
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return Setting(roles, annotation if is_section else None)
