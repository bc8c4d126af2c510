"""SweepSpec: a search-space file as a validated tree; `space_check` holds it against its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from cirkd_ray.config.composition import Tree
from cirkd_ray.config.roles import Computes, Cosmetic, Machine, Role
from cirkd_ray.config.settings import role_of
from cirkd_ray.sweep.parameters import Parameter

PAUSING = ("hyperband", "pbt")
"""Schedulers that pause trials, so that more trials are under way than run at a time."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Named(_Spec):
    """A choice by name, some of which earlier versions had."""

    gone: ClassVar[dict[str, str]] = {}

    @field_validator("name", mode="before", check_fields=False)
    @classmethod
    def _still_there(cls, value: Any) -> Any:
        if isinstance(value, str) and value in cls.gone:
            raise ValueError(f"{value} is no longer there; use {cls.gone[value]}")
        return value


class Budget(_Spec):
    """What a sweep may spend."""

    trials: Computes[PositiveInt | None] = Field(None, description="default: the whole grid, or 16")
    steps: Computes[PositiveInt | None] = Field(
        None, description="of a trial at most; default: the recipe's train.steps"
    )
    report_every: Computes[PositiveInt | None] = Field(
        None, description="steps between validations, where trials are judged; default: a tenth of steps"
    )
    hours: Machine[PositiveFloat | None] = Field(None, description="wall time after which no trial goes on")


class Scheduler(_Named):
    """When trials end early or change."""

    gone = {"bohb": "asha with searcher tpe", "pb2": "pbt"}

    name: Literal["none", "asha", "hyperband", "median", "pbt"] = "none"
    grace_steps: PositiveInt | None = Field(
        None, description="no trial is judged before; default: one report"
    )
    reduction_factor: float = Field(3.0, gt=1, description="ASHA, HyperBand: one in so many goes on")
    perturb_every: PositiveInt | None = Field(
        None, description="PBT: steps between exchanges; default: one report"
    )
    quantile: float = Field(
        0.25,
        gt=0,
        le=0.5,
        description="PBT: share of trials, the worst, that take the weights of as many best",
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="PBT: probability of a new value instead of a scaled one"
    )


class Searcher(_Named):
    """Where the next trial's values come from."""

    gone = {"bohb": "tpe with scheduler asha", "hyperopt": "tpe"}

    name: Literal["random", "grid", "tpe"] = "random"
    seed: int = Field(0, ge=0)
    startup_trials: PositiveInt = Field(8, description="random trials before the model of TPE is used")


class Resources(_Spec):
    """What a trial takes; what is left out is the recipe's `cluster`."""

    workers: PositiveInt | Literal["auto"] | None = None
    cpus_per_worker: PositiveFloat | Literal["auto"] | None = None
    gpus_per_worker: float | None = Field(None, ge=0.01, description="a part lets trials share a GPU")
    device: Literal["auto", "cpu", "cuda"] | None = None
    concurrent: PositiveInt | None = Field(
        None, description="trials, or packs, at a time at most; default: what fits"
    )
    pack: PositiveInt | Literal["auto"] = Field(
        1,
        description="trials that are trained together, with one teacher and one loader, if they can; auto: "
        "as many as fit the memory and save time",
    )
    disk: Literal["check", "ignore"] = Field(
        "check", description="ignore: start where the checkpoints may not fit the disk"
    )


class SweepSpec(_Spec):
    """A sweep, whole."""

    name: Computes[str] = "sweep"
    description: Cosmetic[str] = ""
    recipe: Computes[str]
    set: Computes[dict[str, Any]] = Field({}, description="settings of the recipe that hold for every trial")
    parameters: Computes[dict[str, Parameter]] = Field(min_length=1)
    metric: Computes[dict[str, Literal["max", "min"]]] = Field({"miou": "max"}, min_length=1)
    budget: Budget = Budget()
    scheduler: Computes[Scheduler] = Scheduler()
    searcher: Computes[Searcher] = Searcher()
    resources: Machine[Resources] = Resources()
    seeds: Computes[tuple[NonNegativeInt, ...]] = Field(
        (0,), min_length=1, description="trials use the first; controls and finalists all"
    )
    finalists: Computes[int] = Field(
        1, ge=0, description="best configurations that are run with every seed, whole length"
    )
    controls: Computes[bool] = Field(
        True, description="run the recipe without distillation and with its own values"
    )

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed comes twice")
        return value

    @property
    def multi_objective(self) -> bool:
        """Whether there is more than one metric."""
        return len(self.metric) > 1

    @property
    def primary(self) -> str:
        """The metric that ranks: the first."""
        return next(iter(self.metric))

    @property
    def pack(self) -> int:
        """Trials that are trained together at most; one where that is still to be chosen."""
        return 1 if self.resources.pack == "auto" else self.resources.pack

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values whose conditions hold, in the order of the file."""
        found: dict[str, Any] = {}
        for path, parameter in self.parameters.items():
            if path in values and parameter.applies(found):
                found[path] = values[path]
        return found

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Dotted path -> value that drawn values set in the recipe."""
        return {path: self.parameters[path].setting(value) for path, value in self.active(values).items()}

    def overrides(self) -> Tree:
        """What holds for every trial: `set`, the budget and the resources, as overrides of the recipe."""
        found = dict(self.set)
        budget, resources = self.budget, self.resources
        if budget.steps is not None:
            found["train.steps"] = budget.steps
        for name in ("workers", "cpus_per_worker", "gpus_per_worker", "device"):
            value = getattr(resources, name)
            if value is not None:
                found[f"cluster.{name}"] = value
        found["seed"] = self.seeds[0]
        return found

    def grid_points(self) -> list[dict[str, Any]]:
        """Every combination of the grids, each once, conditions observed."""
        paths = list(self.parameters)
        points = [
            dict(zip(paths, combination, strict=True))
            for combination in product(*(self.parameters[path].options for path in paths))
        ]
        unique = {tuple(sorted(self.active(point).items(), key=str)): self.active(point) for point in points}
        return list(unique.values())

    def random_points(self, count: int) -> list[dict[str, Any]]:
        """`count` random configurations, a function of the searcher's seed."""
        random = np.random.default_rng(self.searcher.seed)
        drawn = [
            {p: parameter.draw(random) for p, parameter in self.parameters.items()} for _ in range(count)
        ]
        return [self.active(values) for values in drawn]

    def tidy(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A sampler's values as values of the domains, without those that do not count."""
        found = {
            path: self.parameters[path].plain(value)
            for path, value in config.items()
            if path in self.parameters
        }
        return self.active(found)

    @property
    def trials(self) -> int:
        """How many trials the sweep has."""
        if self.searcher.name == "grid":
            count = len(self.grid_points())
            return min(count, self.budget.trials or count)
        return self.budget.trials or 16


def is_kept(path: str) -> bool:
    """Whether a setting of a space must be the same when its sweep is resumed.

    All must, except what a sweep takes of the cluster and what its runs tell.
    """
    section, _, setting = path.partition(".")
    role = role_of(setting) if section == "set" and setting else role_of(path, SweepSpec)
    return Role.COMPUTES in role or not role & (Role.MACHINE | Role.COSMETIC)
