"""From a RunSpec to the objects of one rank."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cirkd_ray.config import ModelSpec, RunSpec, TeacherSpec
from cirkd_ray.data import SegmentationDataset, build_dataset
from cirkd_ray.device import choose_precision
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.inference import ONE_VIEW, SlidingWindow, Views
from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.size import require_memory
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.average import StudentAverage
from cirkd_ray.train.batchnorm import count_on_host, synchronised
from cirkd_ray.train.distiller import Distiller, build_losses
from cirkd_ray.train.distributed import World
from cirkd_ray.train.frozen import cast_weights, freeze
from cirkd_ray.train.optim import build_discriminator_optimizer, build_optimizer, parameter_groups
from cirkd_ray.train.step import TrainStep
from cirkd_ray.types import PADDING_LABEL, ClassSet
from cirkd_ray.weights.loading import WeightsReport, aside, load_weights
from cirkd_ray.weights.open import open_network
from cirkd_ray.weights.package import numbered_classes


@dataclass(frozen=True)
class Run:
    """Everything that one rank trains with."""

    spec: RunSpec
    world: World
    train_set: SegmentationDataset
    val_set: SegmentationDataset
    student: SegmentationModel
    teacher: SegmentationModel | None
    step: TrainStep
    precision: str
    notes: tuple[str, ...] = ()
    """What the user should know of the weights that the networks start with."""

    @property
    def evaluated(self) -> SegmentationModel:
        """The network that is validated and exported: the averaged student where there is one."""
        average = self.step.average
        network = self.student if average is None else average.module
        assert isinstance(network, SegmentationModel)
        return network

    @property
    def views(self) -> Views:
        """How validation images are seen."""
        train = self.spec.train
        window = train.validate_window
        return Views(window=SlidingWindow(window, train.validate_stride)) if window else ONE_VIEW


def build_datasets(spec: RunSpec) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Training and validation split; whatever is wrong with the files' places shows here, before training."""
    splits = (spec.data.train_split, spec.data.val_split)
    train, val = (
        build_dataset(spec.data.name, split=split, root=spec.data.root, **spec.data.settings)
        for split in splits
    )
    _check_classes(len(train.classes), spec.data.name)
    return train, val


def _check_classes(count: int, data: str) -> None:
    """Class indices must fit below the label values that are set aside."""
    if not 2 <= count <= PADDING_LABEL:
        raise ConfigError(f"data: {data!r} has {count} classes; 2 to {PADDING_LABEL} can be trained")


def build_network(
    spec: ModelSpec, num_classes: int, where: str, notes: list[str] | None = None
) -> SegmentationModel:
    """A network, with its starting weights if the recipe names some.

    Args:
        spec: which network.
        num_classes: classes that it scores.
        where: path of the network in the recipe.
        notes: takes what the weights left out or left fresh.
    """
    model = build_model(spec.name, num_classes=num_classes, where=where, **spec.settings)
    if spec.weights is not None:
        report = load_weights(model, spec.weights, reinit_classifier=spec.reinit_classifier)
        if notes is not None:
            notes += _told(where, report)
    return model


def _told(where: str, report: WeightsReport | None) -> list[str]:
    """What a load did, for the notes."""
    if report is None:
        return []
    loaded = f"{where}: {report.loaded} entries from {report.source} ({report.kind})"
    return [loaded, *(f"{where}: {text}" for _, text in aside(report))]


def build_teacher(
    spec: TeacherSpec, num_classes: int, classes: ClassSet | None = None, notes: list[str] | None = None
) -> SegmentationModel:
    """The frozen teacher.

    Args:
        spec: where it comes from.
        num_classes: the data set's.
        classes: the data set's, where their names are to be compared.
        notes: takes what the user should know of it.

    Raises:
        ConfigError: its recipe is not trained yet, or it is not what the recipe says (see `open_network`).
        WeightsError: its weights are those of a backbone, or do not fit.
    """
    if spec.weights is None and spec.module is None:
        raise ConfigError(f"teacher.train: {spec.train!r} has to be trained first; `cirkd train` does so")
    opened = open_network(
        spec.weights,
        classes or numbered_classes(num_classes),
        module=spec.module,
        name=None if spec.model is None else spec.model.name,
        settings=None if spec.model is None else spec.model.settings,
        where="teacher.model",
        called=f"teacher {spec.weights or spec.module}",
    )
    if notes is not None:
        notes += _told("teacher", opened.report)
        notes += opened.warnings
    return opened.model.requires_grad_(False)


def seed_of(*numbers: int) -> int:
    """A seed that is a function of the numbers and of nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_run(spec: RunSpec, world: World) -> Run:
    """Build data, networks, losses and optimisers of one rank.

    The student's first weights depend on the seed and the network alone, so that methods that are compared
    start from the same student.
    """
    precision = choose_arithmetic(spec, world.device)
    train_set, val_set = build_datasets(spec)
    classes = len(train_set.classes)
    torch.manual_seed(seed_of(spec.seed, 0))
    notes: list[str] = []
    student = build_network(spec.model, classes, "model", notes)
    torch.manual_seed(seed_of(spec.seed, 1))
    teacher = None
    if spec.distill is not None and spec.teacher is not None:
        teacher = build_teacher(spec.teacher, classes, train_set.classes, notes)
    step = assemble_step(spec, world, student, teacher, classes, precision)
    return Run(
        spec=spec,
        world=world,
        train_set=train_set,
        val_set=val_set,
        student=student,
        teacher=step.teacher,
        step=step,
        precision=precision,
        notes=tuple(notes),
    )


def choose_arithmetic(spec: RunSpec, device: torch.device) -> str:
    """Set this process up for the run's arithmetic; its precision."""
    if spec.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's matrix products refuse
    torch.use_deterministic_algorithms(spec.train.deterministic)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not spec.train.deterministic
    if device.type == "cuda":  # TF32 for what autocast leaves in float32
        torch.set_float32_matmul_precision("highest" if spec.train.deterministic else "high")
    return choose_precision(spec.train.precision, device)


def assemble_step(
    spec: RunSpec,
    world: World,
    student: SegmentationModel,
    teacher: SegmentationModel | None,
    classes: int,
    precision: str,
) -> TrainStep:
    """The step of a student, its teacher and the recipe's losses; without losses it has no teacher."""
    losses = build_losses(spec, student, teacher, classes)
    student.taps = frozenset().union(*(loss.student_taps for loss in losses.values()))
    if teacher is not None:
        teacher.taps = frozenset().union(*(loss.teacher_taps for loss in losses.values()))
    teacher = teacher if losses else None
    specs = {name: item for name, item in spec.distill.losses.items() if item} if spec.distill else {}
    distiller = Distiller(student, losses, specs, spec.task, spec.train.steps, spec.seed)
    distiller.relations = Relations(spec.train.relations_path, spec.train.relations, spec.train.deterministic)
    return _build_step(spec, world, distiller, teacher, precision)


def _build_step(
    spec: RunSpec, world: World, distiller: Distiller, teacher: SegmentationModel | None, precision: str
) -> TrainStep:
    """Move everything to the device, wrap what is trained, make the optimisers."""
    on_gpu = world.device.type == "cuda"
    channels_last = bool(spec.train.channels_last) if on_gpu else spec.train.channels_last == "always"
    student = distiller.student
    require_memory(distiller.losses.values(), world.device)
    if on_gpu and world.size > 1 and spec.train.sync_batchnorm:
        synchronise_batchnorm(distiller)
    _move(distiller, world.device, channels_last)
    if teacher is not None:
        freeze(teacher, [loss for _, loss in distiller.named_losses()])
        _move(teacher, world.device, bool(spec.train.channels_last))  # on CPUs its forward pass is faster so
        cast_weights(teacher, precision)
    average = None if spec.train.ema is None else StudentAverage(student, spec.train.ema)
    optimizer = build_optimizer(parameter_groups(student, distiller.losses, spec.optim), spec.optim)
    discriminators: dict[str, torch.optim.Optimizer] = {
        name: build_discriminator_optimizer(loss.discriminator, loss.discriminator_optimizer())
        for name, loss in distiller.discriminators()
        if loss.discriminator is not None
    }
    if spec.train.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    step = TrainStep(
        distiller,
        teacher,
        optimizer,
        discriminators,
        spec.optim,
        spec.train.steps,
        precision,
        world,
        average=average,
        channels_last=channels_last,
    )
    count_on_host(distiller, average)  # after DDP, which wants all tensors on one device when it begins
    return step


def synchronise_batchnorm(distiller: Distiller) -> None:
    """Let the BatchNorms of the student and of the losses' layers take their statistics over all ranks.

    A discriminator keeps each rank's own: a gradient penalty differentiates twice through them, which the
    synchronised ones do not support. Their running statistics are averaged before they are used.
    """
    parts: list[tuple[nn.Module, str, nn.Module]] = [(distiller, "student", distiller.student)]
    for _, loss in distiller.named_losses():
        parts += [(loss, n, part) for n, part in loss.named_children() if part is not loss.discriminator]
    for owner, name, part in parts:
        setattr(owner, name, synchronised(part))


def _move(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)
