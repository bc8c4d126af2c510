"""How many workers a run has: a number, what the cluster has, or a range within which they come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, model_validator

from cirkd_ray.config.roles import Machine


class ElasticSpec(BaseModel):
    """Workers that come and go with the cluster's places; the global batch and all else stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Machine[PositiveInt] = Field(description="fewer are waited for")
    max: Machine[PositiveInt] = Field(description="no more are taken")

    def __str__(self) -> str:
        return f"{self.min} to {self.max}"

    @model_validator(mode="after")
    def _in_order(self) -> ElasticSpec:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; give min <= max")
        return self


def _form(value: Any) -> str:
    return "~range" if isinstance(value, Mapping | ElasticSpec) else "~number"


Workers = Annotated[
    Annotated[PositiveInt | Literal["auto"], Tag("~number")] | Annotated[ElasticSpec, Tag("~range")],
    Discriminator(_form),
]
"""A setting. `registry.describe` leaves the tags out of what it says of a wrong value."""


def fewest(workers: int | str | ElasticSpec) -> int:
    """The workers that this setting takes at least; 1 where that is up to the cluster."""
    if isinstance(workers, ElasticSpec):
        return workers.min
    return workers if isinstance(workers, int) else 1
