"""RunSpec: everything that decides a run, as one frozen, validated tree.

`model`, `teacher.model`, `data` and each loss are open: beside the fields below they take the settings of
the class that they name. They are validated against that class (see `config.registry.settings_model`) and
filled in with its defaults.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from cirkd_ray.config.roles import (
    Cohort,
    Common,
    Computes,
    Cosmetic,
    Equal,
    Held,
    Machine,
    Mutable,
    Place,
    Recipe,
    Shapes,
    Student,
    Weight,
)
from cirkd_ray.config.workers import Workers


class _Spec(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class _OpenSpec(_Spec):
    """Unknown keys are settings of the class that the spec names, checked by `resolve`."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the named class."""
        return dict(self.__pydantic_extra__ or {})


class ModelSpec(_OpenSpec):
    """A network: its name, the weights it starts from and its own settings."""

    name: Computes[str]
    weights: Place[Computes[str | None]] = Field(
        None, description="run folder, model.json, safetensors or .pth file to start from"
    )
    reinit_classifier: Computes[bool] = Field(
        False, description="start with a new classifier where the number of classes differs"
    )


class DataSpec(_OpenSpec):
    """A data set, how it is augmented and loaded, and its own settings."""

    name: Computes[str] = "shapes"
    root: Place[str | None] = Field(None, description="folder that the data set lies in")
    train_split: Computes[str] = "train"
    val_split: Computes[str] = "val"
    crop: Common[Computes[tuple[PositiveInt, PositiveInt] | None]] = Field(
        None, description="height, width; None: the data set's own"
    )
    scale_range: Common[Computes[tuple[PositiveFloat, PositiveFloat]]] = (0.5, 2.0)
    scale_step: Common[Computes[PositiveFloat]] = 0.1
    flip: Common[Computes[float]] = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    max_class_share: Common[Computes[float]] = Field(
        1.0, gt=0, le=1, description="redraw crops that one class covers beyond this share"
    )
    workers: Common[Machine[int]] = Field(0, ge=0, description="loader processes of each training worker")


class TeacherSpec(_Spec):
    """Where the teacher comes from: exactly one of `train`, `weights`, `module`."""

    SOURCES: ClassVar = ("train", "weights", "module")

    train: Held[Computes[str | None]] = Field(
        None, description="recipe that trains it, on this run's data and cluster"
    )
    set: Held[Computes[tuple[str, ...]]] = Field((), description="overrides of that recipe, as PATH=VALUE")
    weights: Place[Computes[str | None]] = Field(
        None,
        description="run folder, model.json, safetensors or .pth file; package://NAME comes with cirkd_ray",
    )
    module: Computes[str | None] = Field(None, description="package.module:factory of a network of your own")
    model: ModelSpec | None = Field(
        None, description="the network, where the weights file does not say; what is left out has its default"
    )

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSpec:
        given = [key for key in self.SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(self.SOURCES)}; got {found}")
        return self


class WeightSchedule(_Spec):
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


class LossSpec(_OpenSpec):
    """One distillation loss: its kind, a weight (or one a term) and its own settings."""

    kind: Computes[str]
    weight: Weight[float | None] = Field(None, ge=0, description="weight of every term")
    weights: dict[str, Weight[float]] | None = Field(
        None, description="weight of each term; the published ones by default"
    )
    schedule: WeightSchedule | None = None

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


class DistillSpec(_Spec):
    """The distillation losses, by free names that stay stable for sweeps; null removes an inherited one."""

    losses: dict[str, LossSpec | None]


class TaskSpec(_Spec):
    """Weights of the cross-entropy with the labels."""

    weight: Mutable[float] = Field(1.0, ge=0)
    aux_weight: Mutable[float] = Field(0.4, ge=0, description="of the auxiliary head, if there is one")


class OptimSpec(_Spec):
    """Optimiser and learning-rate schedule."""

    name: Computes[Literal["sgd", "adamw"]] = "sgd"
    lr: Mutable[PositiveFloat] = 0.02
    momentum: Computes[float] = Field(0.9, ge=0.0, lt=1.0)
    betas: Computes[tuple[float, float]] = (0.9, 0.999)
    weight_decay: Computes[float] = Field(1e-4, ge=0)
    schedule: Computes[Literal["poly", "cosine", "constant"]] = "poly"
    power: Mutable[PositiveFloat] = Field(0.9, description="of the poly schedule, lr (1 - t/T)^power")
    warmup_steps: Computes[int] = Field(0, ge=0)
    clip_grad_norm: Mutable[PositiveFloat | None] = None
    head_lr_factor: Computes[PositiveFloat] = Field(
        1.0, description="learning rate of everything but the encoder, relative to lr"
    )


class TrainSpec(_Spec):
    """Length, batch, cadence and arithmetic of a run."""

    steps: Computes[int] = Field(40_000, gt=0, lt=2**31)
    batch_size: Cohort[Machine[Computes[int]]] = Field(
        16, gt=0, lt=2**20, description="global: split over the workers"
    )
    accumulate: Cohort[Machine[Computes[int]]] = Field(1, gt=0, lt=2**20, description="micro-batches a step")
    log_every: Cosmetic[PositiveInt] = 50
    validate_every: Cohort[Held[Computes[PositiveInt]]] = 800
    validate_limit: Cohort[Computes[PositiveInt | None]] = Field(
        None, description="validate on the first so many images only"
    )
    validate_batch_size: Cohort[Computes[PositiveInt]] = Field(
        1, description="images of one size at a time; with 1, counts do not depend on the number of workers"
    )
    validate_window: Cohort[Computes[tuple[PositiveInt, PositiveInt] | None]] = Field(
        None, description="height, width: see validation images through a window that slides over them"
    )
    validate_stride: Cohort[Computes[tuple[PositiveInt, PositiveInt] | None]] = Field(
        None, description="of that window; None: two thirds of it"
    )
    checkpoint_every: Held[Computes[PositiveInt]] = 800
    export: Cosmetic[Literal["fp32", "fp16"]] = Field("fp32", description="numbers of the exported student")
    keep_checkpoints: Cosmetic[int] = Field(2, ge=2, description="more than the last, in case it is damaged")
    pictures: Cosmetic[int] = Field(4, ge=0, description="validation images shown in TensorBoard")
    precision: Cohort[Computes[Literal["auto", "fp32", "bf16", "fp16"]]] = Field(
        "auto", description="auto: bf16 on CUDA, fp16 on its older cards, fp32 on CPUs"
    )
    relations: Cohort[Computes[Literal["auto", "fp32", "tf32", "fp16", "bf16"]]] = Field(
        "auto", description="products of relational losses on CUDA; auto: fp16 fused, else tf32"
    )
    relations_path: Cohort[Computes[Literal["auto", "fused", "tiles"]]] = Field(
        "auto", description="their kernels on CUDA; auto: both are compared once, the better one is taken"
    )
    channels_last: Cohort[Computes[bool | Literal["always"]]] = Field(
        True,
        description="memory format of the networks; true: on CPUs of the teacher alone; always: of the "
        "student too, which makes some of them faster (`cirkd bench layout` compares)",
    )
    sync_batchnorm: Computes[bool] = Field(True, description="on CUDA with more than one worker")
    ema: Computes[float | None] = Field(
        None, gt=0, lt=1, description="decay of the averaged weights that are validated"
    )
    compile: Cohort[Computes[bool | Literal["auto"]]] = Field(
        "auto",
        description="true: torch.compile of student and teacher; auto: on CUDA the teacher's convolutions "
        "run in one with their sums and ReLUs, each where that is found right and faster; false: neither",
    )
    deterministic: Cohort[Computes[bool]] = Field(
        False, description="deterministic CUDA kernels, for bit-for-bit resume on GPUs"
    )

    @model_validator(mode="after")
    def _stride_of_a_window(self) -> TrainSpec:
        stride, window = self.validate_stride, self.validate_window
        if stride is not None and (window is None or stride[0] > window[0] or stride[1] > window[1]):
            raise ValueError("validate_stride: needs a validate_window that is at least as large")
        return self


class ClusterSpec(_Spec):
    """Workers and what each takes."""

    workers: Machine[Workers] = Field(
        "auto", description="auto: one a GPU, or two on CPUs; {min: 1, max: 4}: as many as find a place"
    )
    device: Machine[Literal["auto", "cpu", "cuda"]] = "auto"
    cpus_per_worker: Machine[PositiveFloat | Literal["auto"]] = Field(
        "auto", description="auto: 1 + loader processes"
    )
    max_failures: Machine[int] = Field(3, ge=0, description="restarts from the last checkpoint")
    async_checkpoints: Machine[bool] = Field(True, description="write checkpoints while training goes on")
    hang_timeout: Machine[PositiveFloat | None] = Field(
        600.0,
        description="seconds without progress after which a hung worker is ended, at least ten times the "
        "usual step; three times as long at a start (at least 120), in the first steps, a validation or a "
        "checkpoint of which the disk takes nothing; null: only say so",
    )
    storage_timeout: Machine[float] = Field(
        600.0, ge=0, description="seconds to wait for a full disk, or for storage that is away; 0: none"
    )
    disk: Machine[Literal["check", "ignore"]] = Field(
        "check", description="refuse a run whose checkpoints do not fit the disk"
    )
    autoscaling: Machine[bool] = Field(False, description="wait for nodes where a run does not fit")


class Published(_Spec):
    """A published figure of this recipe."""

    miou: Recipe[float]
    split: Recipe[str] = "val"
    source: Recipe[str]
    note: Recipe[str | None] = None


class RunSpec(_Spec):
    """A run, whole."""

    name: Recipe[Held[str]] = "run"
    description: Recipe[str] = ""
    seed: Cohort[Held[Computes[int]]] = Field(0, ge=0)
    model: Equal[Shapes[Student[ModelSpec]]]
    teacher: Cohort[Shapes[TeacherSpec | None]] = None
    distill: Shapes[DistillSpec | None] = None
    task: Equal[TaskSpec] = TaskSpec()
    data: Equal[Cohort[DataSpec]] = DataSpec()
    optim: Equal[OptimSpec] = OptimSpec()
    train: Equal[TrainSpec] = TrainSpec()
    cluster: Cohort[Held[ClusterSpec]] = ClusterSpec()
    baseline: Cosmetic[bool] = Field(False, description="train without distillation first, to compare with")
    published: Published | None = None

    @model_validator(mode="after")
    def _teacher_and_losses(self) -> RunSpec:
        if self.distill is not None and self.teacher is None:
            raise ValueError("distill: needs a teacher; set teacher.weights, teacher.train or distill=null")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what goes to workers and into `run.yaml`."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
