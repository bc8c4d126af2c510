"""Sections of a recipe that name a class: networks, data, losses.

Beside the fields below, such a section takes the settings of the class that it names. They are validated
against that class (see `config.registry.settings_model`) and filled in with its defaults.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cirkd_ray.config.roles import Common, Computes, Machine, Mutable, Place, Weight


class Spec(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class OpenSpec(Spec):
    """Unknown keys are settings of the class that the spec names, checked by `resolve`."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the named class."""
        return dict(self.__pydantic_extra__ or {})


_Jitter = Annotated[float, Field(ge=0)]
_Hue = Annotated[float, Field(ge=0, le=0.5)]


class ModelSpec(OpenSpec):
    """A network: its name, the weights it starts from and its own settings."""

    name: Computes[str] = Field(description="a published name, or HEAD:TIMM_NAME (`cirkd models`)")
    weights: Place[Computes[str | None]] = Field(
        None, description="run folder, model.json, safetensors or .pth file to start from"
    )
    reinit_classifier: Computes[bool] = Field(
        False, description="start with a new classifier where the number of classes differs"
    )


class DataSpec(OpenSpec):
    """A data set, how it is augmented and loaded, and its own settings."""

    name: Computes[str] = Field("shapes", description="data set (`cirkd data sets`), or package.module:Class")
    root: Place[str | None] = Field(None, description="folder that the data set lies in")
    train_split: Computes[str] = Field("train", description="split that is trained on")
    val_split: Computes[str] = Field("val", description="split that is validated on")
    crop: Common[Computes[tuple[PositiveInt, PositiveInt] | None]] = Field(
        None, description="height, width; None: the data set's own"
    )
    scale_range: Common[Computes[tuple[PositiveFloat, PositiveFloat]]] = Field(
        (0.5, 2.0), description="smallest and largest random scale"
    )
    scale_step: Common[Computes[PositiveFloat]] = Field(0.1, description="distance of two scales")
    flip: Common[Computes[float]] = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    max_class_share: Common[Computes[float]] = Field(
        1.0, gt=0, le=1, description="redraw crops that one class covers beyond this share"
    )
    color_jitter: Common[Computes[tuple[_Jitter, _Jitter, _Jitter, _Hue]]] = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="brightness, contrast, saturation and hue, as torchvision's ColorJitter takes them",
    )
    blur: Common[Computes[float]] = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    erase: Common[Computes[float]] = Field(
        0.0, ge=0, le=1, description="probability that a rectangle is erased from the image, not its labels"
    )
    paste: Common[Computes[float]] = Field(
        0.0, ge=0, le=1, description="probability that half of another image's classes are pasted over"
    )
    workers: Common[Machine[int]] = Field(0, ge=0, description="loader processes of each training worker")


class WeightSchedule(Spec):
    """Factor of a loss's weights over the run, in fractions of its steps."""

    warmup: Mutable[float] = Field(0.0, ge=0, le=1, description="rises linearly from 0 over this fraction")
    decay_from: Mutable[float] = Field(1.0, ge=0, le=1, description="starts to fall here")
    decay_to: Mutable[float] = Field(0.0, ge=0, description="factor at the end of the run")

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` of `steps`."""
        position = step / max(1, steps)
        up = min(1.0, (step + 1) / max(1.0, self.warmup * steps)) if self.warmup > 0 else 1.0
        if position <= self.decay_from or self.decay_from >= 1.0:
            return up
        return up * (1.0 + (self.decay_to - 1.0) * (position - self.decay_from) / (1.0 - self.decay_from))


class LossSpec(OpenSpec):
    """One distillation loss: its kind, a weight (or one a term) and its own settings."""

    kind: Computes[str] = Field(description="method (`cirkd losses list`), or package.module:Class")
    weight: Weight[float | None] = Field(None, ge=0, description="weight of every term")
    weights: dict[str, Weight[float]] | None = Field(
        None, description="weight of each term; the published ones by default"
    )
    schedule: WeightSchedule | None = Field(None, description="of the weights over the run")

    @model_validator(mode="before")
    @classmethod
    def _older_names(cls, values: Any) -> Any:
        """`gather`, of recipes and runs that are older than `group`."""
        if isinstance(values, dict) and isinstance(values.get("gather"), bool) and "group" not in values:
            kept = {name: value for name, value in values.items() if name != "gather"}
            return {**kept, "group": "batch" if values["gather"] else "rank"}
        return values

    @model_validator(mode="after")
    def _one_weight(self) -> LossSpec:
        if self.weight is not None and self.weights is not None:
            raise ValueError("give weight (all terms) or weights (a mapping from term to weight), not both")
        if any(value < 0 for value in (self.weights or {}).values()):
            raise ValueError("a weight is not negative")
        return self


class DistillSpec(Spec):
    """The distillation losses, by free names that stay stable for sweeps; null removes an inherited one."""

    losses: dict[str, LossSpec | None] = Field(description="losses by free names")


class TaskLossSpec(OpenSpec):
    """One supervised loss: its kind, its weight and its own settings."""

    kind: Computes[str] = Field(
        "cross_entropy", description="loss with the labels (`cirkd losses list`), or package.module:Class"
    )
    weight: Weight[float] = Field(1.0, ge=0, description="factor of the loss")


class TaskSpec(Spec):
    """What the student learns from the labels."""

    weight: Mutable[float] = Field(1.0, ge=0, description="of all of it")
    aux_weight: Mutable[float] = Field(0.4, ge=0, description="of the auxiliary head, if there is one")
    losses: dict[str, TaskLossSpec | None] = Field(
        {"task": TaskLossSpec()},
        description="losses by free names, in the place of the cross-entropy; null removes an inherited one",
    )
