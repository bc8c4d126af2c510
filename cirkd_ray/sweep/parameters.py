"""What one setting of a sweep may be: its domain, and the condition under which it counts.

Optuna's distributions are not used for this: they take no conditions, draw only within a study, round nothing
and load slowly (0.6 s). `Parameter.suggest` is where Optuna's TPE asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from optuna.trial import Trial

Scalar = bool | int | float | str | None
KINDS = ("uniform", "loguniform", "quniform", "randint", "choice", "grid")


class Parameter(BaseModel):
    """Exactly one domain. Samplers draw *values*: numbers, or the label of an option.

    Options are a list, or a mapping from a label to what it sets, which may be a whole section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    uniform: tuple[float, float] | None = Field(None, description="low, high")
    loguniform: tuple[float, float] | None = Field(None, description="low, high, both above 0")
    quniform: tuple[float, float, float] | None = Field(None, description="low, high, step; high included")
    randint: tuple[int, int] | None = Field(None, description="low, high, both included")
    choice: list[Any] | dict[str, Any] | None = Field(None, description="options, or label: option")
    grid: list[Any] | dict[str, Any] | None = Field(None, description="options that are all tried")
    when: dict[str, Scalar | list[Scalar]] = Field(
        {}, description="counts only where another choice has this value (or one of these)"
    )

    @model_validator(mode="after")
    def _one_domain(self) -> Parameter:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}; got {' and '.join(given) or 'none'}")
        domain = getattr(self, given[0])
        if given[0] in ("choice", "grid"):
            if not domain:
                raise ValueError(f"{given[0]} has no options")
            return self
        low, high = domain[:2]
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{given[0]} takes low < high, got {low!r} and {high!r}")
        if given[0] == "loguniform" and low <= 0:
            raise ValueError(f"loguniform takes bounds above 0, got {low!r}")
        if given[0] == "quniform" and not 0 < domain[2] <= high - low:
            raise ValueError(f"quniform takes a step between 0 and high - low, got {domain[2]!r}")
        return self

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @cached_property
    def options(self) -> dict[Scalar, Any]:
        """Label -> value of a choice or grid; empty for numbers."""
        found = self.choice if self.choice is not None else self.grid
        if found is None:
            return {}
        if isinstance(found, Mapping):
            return dict[Scalar, Any](found.items())
        return {option if isinstance(option, Scalar) else _text(option): option for option in found}

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest number; zeros for options."""
        low, high = (self.uniform or self.loguniform or self.quniform or self.randint or (0.0, 0.0))[:2]
        return low, high

    def extremes(self) -> list[Any]:
        """Values that stand for all when a space is checked: both bounds, or every option's label."""
        if self.options:
            return list(self.options)
        return [int(b) for b in self.bounds] if self.randint else [self._tidy(b) for b in self.bounds]

    def between(self) -> list[float]:
        """A number inside a continuous domain that is no integer; empty for other domains."""
        return [self.draw(np.random.default_rng(0))] if self.uniform or self.loguniform else []

    def values(self) -> list[Any]:
        """Every value of a domain that is finite; empty for the others."""
        if self.options:
            return list(self.options)
        low, high = self.bounds
        if self.randint:
            return list(range(int(low), int(high) + 1))
        if self.quniform:
            return [self._tidy(low + self.quniform[2] * k) for k in range(self._places)]
        return []

    def setting(self, value: Any) -> Any:
        """What a drawn value sets in the recipe."""
        return self.options[value] if self.options else value

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds, given the values drawn so far."""
        for path, wanted in self.when.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if path not in values or values[path] not in allowed:
                return False
        return True

    def draw(self, random: np.random.Generator) -> Any:
        """A random value."""
        if self.options:
            return list(self.options)[int(random.integers(len(self.options)))]
        low, high = self.bounds
        if self.randint:
            return int(random.integers(int(low), int(high) + 1))
        if self.loguniform:
            return float(np.exp(random.uniform(np.log(low), np.log(high))))
        if self.quniform:
            return self._tidy(low + self.quniform[2] * int(random.integers(0, self._places)))
        return float(random.uniform(low, high))

    def suggest(self, trial: Trial, path: str) -> Any:
        """A value by an Optuna trial."""
        if self.options:
            return trial.suggest_categorical(path, list(self.options))
        low, high = self.bounds
        if self.randint:
            return trial.suggest_int(path, int(low), int(high))
        if self.quniform:
            return self._tidy(trial.suggest_float(path, low, high, step=self.quniform[2]))
        return trial.suggest_float(path, low, high, log=self.loguniform is not None)

    def plain(self, value: Any) -> Any:
        """A sampler's value as one of this domain: samplers return NumPy's types, and PBT numbers between."""
        if self.options:
            return next(label for label in self.options if label == value)
        return self.round_to(value)

    def round_to(self, value: float) -> Any:
        """The nearest number of this domain."""
        low, high = self.bounds
        value = min(max(float(value), low), high)
        if self.randint:
            return round(value)
        if self.quniform:
            step = self.quniform[2]
            nearest = math.floor((value - low) / step + 0.5 - 1e-9)
            return self._tidy(low + step * min(nearest, self._places - 1))
        return value

    @property
    def _places(self) -> int:
        """How many values a `quniform` has; 1.0 // 0.1 is 9, hence the margin."""
        assert self.quniform is not None
        low, high, step = self.quniform
        return math.floor((high - low) / step + 1e-9) + 1

    def _tidy(self, value: float) -> float | int:
        """An int where bounds and step are whole numbers: settings that count take no float."""
        if self.quniform is None:
            return value
        whole = all(float(part).is_integer() for part in self.quniform)
        return round(value) if whole else round(value, 12)


def _text(option: Any) -> str:
    return str(yaml.safe_dump(option, default_flow_style=True, width=10_000)).strip()
