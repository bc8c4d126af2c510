"""RunSpec: everything that decides a run, as one frozen, validated tree."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from cirkd_ray.config.roles import (
    Cohort,
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
)
from cirkd_ray.config.sections import DataSpec, DistillSpec, ModelSpec, Spec, TaskSpec


class TeacherSpec(Spec):
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
    shard: Machine[bool] = Field(
        False,
        description="share its weights out to the workers (FSDP2), where it does not fit one GPU; each then "
        "scores all validation images with it",
    )
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


class OptimSpec(Spec):
    """Optimiser and learning-rate schedule."""

    name: Computes[Literal["sgd", "adamw"]] = Field("sgd", description="optimiser")
    lr: Mutable[PositiveFloat] = Field(0.02, description="learning rate at the start, after the warm-up")
    momentum: Computes[float] = Field(0.9, ge=0.0, lt=1.0, description="of SGD")
    betas: Computes[tuple[float, float]] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: Computes[float] = Field(1e-4, ge=0, description="of convolutions and products alone")
    schedule: Computes[Literal["poly", "cosine", "constant"]] = Field(
        "poly", description="how the learning rate falls over the run"
    )
    power: Mutable[PositiveFloat] = Field(0.9, description="of the poly schedule, lr (1 - t/T)^power")
    warmup_steps: Computes[int] = Field(0, ge=0, description="steps in which the learning rate rises")
    clip_grad_norm: Mutable[PositiveFloat | None] = Field(None, description="largest norm of the gradients")
    head_lr_factor: Computes[PositiveFloat] = Field(
        1.0, description="learning rate of everything but the encoder, relative to lr"
    )


class TrainSpec(Spec):
    """Length, batch, cadence and arithmetic of a run."""

    steps: Computes[int] = Field(40_000, gt=0, lt=2**31, description="optimiser steps of the run")
    batch_size: Cohort[Machine[Computes[int]]] = Field(
        16, gt=0, lt=2**20, description="global: split over the workers"
    )
    accumulate: Cohort[Machine[Computes[int]]] = Field(1, gt=0, lt=2**20, description="micro-batches a step")
    log_every: Cosmetic[PositiveInt] = Field(50, description="steps between two lines of figures")
    validate_every: Cohort[Held[Computes[PositiveInt]]] = Field(
        800, description="steps between two validations"
    )
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
    checkpoint_every: Held[Computes[PositiveInt]] = Field(800, description="steps between two checkpoints")
    export: Cosmetic[Literal["fp32", "fp16"]] = Field("fp32", description="numbers of the exported student")
    keep_checkpoints: Cosmetic[int] = Field(2, ge=2, description="more than the last, in case it is damaged")
    pictures: Cosmetic[int] = Field(4, ge=0, description="validation images shown in TensorBoard")
    loggers: Cosmetic[tuple[str, ...]] = Field(
        ("tensorboard",),
        description="what keeps the run's figures: tensorboard, mlflow, wandb, json (log.jsonl), or "
        "package.module:Class of your own",
    )
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
    batchnorm_ranks: Computes[PositiveInt | None] = Field(
        None, description="workers that synchronise BatchNorm together, such as a node's GPUs; null: all"
    )
    gradient_compression: Computes[Literal["none", "bf16"]] = Field(
        "none", description="bf16: workers exchange gradients in 16 bits, half the bytes"
    )
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


class ClusterSpec(Spec):
    """Workers and what each takes."""

    workers: Machine[PositiveInt | Literal["auto"]] = Field(
        "auto", description="auto: one a GPU, or two on CPUs"
    )
    device: Machine[Literal["auto", "cpu", "cuda"]] = Field(
        "auto", description="what workers train on; auto: GPUs where there are any"
    )
    cpus_per_worker: Machine[PositiveFloat | Literal["auto"]] = Field(
        "auto", description="auto: 1 + loader processes"
    )
    gpus_per_worker: Machine[float] = Field(
        1.0,
        ge=0.01,
        description="of a worker on GPUs; with a part (0.25, 0.5) workers of several runs share a GPU and "
        "its memory, and `workers: auto` is 1",
    )
    max_failures: Machine[int] = Field(3, ge=0, description="restarts from the last checkpoint")
    async_checkpoints: Machine[bool] = Field(True, description="write checkpoints while training goes on")
    hang_timeout: Machine[PositiveFloat | None] = Field(
        600.0,
        description="seconds without progress after which a hung worker is ended, at least ten times the "
        "usual step; three times as long at a start (at least 120), in the first steps, a validation or a "
        "checkpoint of which the disk takes nothing; null: only say so",
    )
    preemption_interval: Machine[PositiveFloat | None] = Field(
        5.0,
        description="seconds between two looks whether a machine is about to be taken away, for which all "
        "workers wait for each other; then a checkpoint is written; null: never look",
    )
    storage_timeout: Machine[float] = Field(
        600.0, ge=0, description="seconds to wait for a full disk, or for storage that is away; 0: none"
    )
    upload_every: Machine[PositiveFloat] = Field(
        30.0, description="seconds between two uploads of what changed, where --out is a URL"
    )
    disk: Machine[Literal["check", "ignore"]] = Field(
        "check", description="refuse a run whose checkpoints do not fit the disk"
    )
    autoscaling: Machine[bool] = Field(False, description="wait for nodes where a run does not fit")
    bucket_cap_mb: Machine[PositiveFloat | None] = Field(
        None,
        lt=2**20,
        description="MiB of gradients that workers exchange at a time; null: torch's 25",
    )
    static_graph: Machine[bool] = Field(
        False, description="tell DDP that each step trains the same parameters (not with train.accumulate)"
    )
    gradient_as_bucket_view: Machine[bool] = Field(
        True, description="gradients lie in what workers exchange: less memory"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _part_or_whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"is a part of one GPU, or a whole number of them, not {value:g}")
        return value


class Published(Spec):
    """A published figure of this recipe."""

    miou: Recipe[float] = Field(description="in %")
    split: Recipe[str] = Field("val", description="on which it was measured")
    source: Recipe[str] = Field(description="where it was published")
    note: Recipe[str | None] = Field(None, description="what else belongs to it")


class RunSpec(Spec):
    """A run, whole."""

    name: Recipe[Held[str]] = Field("run", description="of the recipe")
    description: Recipe[str] = Field("", description="what the recipe is for")
    seed: Cohort[Held[Computes[int]]] = Field(0, ge=0, description="of all random choices")
    model: Equal[Shapes[Student[ModelSpec]]] = Field(description="the network that is trained")
    teacher: Cohort[Shapes[TeacherSpec | None]] = Field(None, description="the network that it learns from")
    distill: Shapes[DistillSpec | None] = Field(None, description="what it learns from the teacher")
    task: Equal[TaskSpec] = Field(TaskSpec(), description="what it learns from the labels")
    data: Equal[Cohort[DataSpec]] = Field(DataSpec(), description="what it is trained and validated on")
    optim: Equal[OptimSpec] = Field(OptimSpec(), description="optimiser and learning rate")
    train: Equal[TrainSpec] = Field(TrainSpec(), description="length, batch, cadence and arithmetic")
    cluster: Cohort[Held[ClusterSpec]] = Field(ClusterSpec(), description="workers and what each takes")
    baseline: Cosmetic[bool] = Field(False, description="train without distillation first, to compare with")
    published: Published | None = Field(None, description="a published figure of the recipe")

    @model_validator(mode="after")
    def _teacher_and_losses(self) -> RunSpec:
        if self.distill is not None and self.teacher is None:
            raise ValueError("distill: needs a teacher; set teacher.weights, teacher.train or distill=null")
        return self

    @model_validator(mode="after")
    def _one_micro_batch_in_a_static_graph(self) -> RunSpec:
        if self.cluster.static_graph and self.train.accumulate > 1:
            raise ValueError(
                "cluster.static_graph: torch's DDP has it for one micro-batch a step, and "
                f"train.accumulate is {self.train.accumulate}; set one of the two back"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what goes to workers and into `run.yaml`."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
