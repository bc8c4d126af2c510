"""From a RunSpec to the objects of one rank."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cirkd_ray.config import ModelSpec, RunSpec, TeacherSpec
from cirkd_ray.data import SegmentationDataset, build_dataset
from cirkd_ray.device import choose_precision, make_scaler
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.size import require_memory
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.distiller import Distiller, build_losses
from cirkd_ray.train.distributed import World
from cirkd_ray.train.optim import build_optimizer, parameter_groups
from cirkd_ray.train.step import TrainStep
from cirkd_ray.types import PADDING_LABEL, ClassSet
from cirkd_ray.weights import load_model
from cirkd_ray.weights.card import find_card
from cirkd_ray.weights.classes import compare_classes
from cirkd_ray.weights.external import load_module
from cirkd_ray.weights.loading import WeightsReport, aside, load_weights, require_whole
from cirkd_ray.weights.package import require_description


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
        _note(notes, where, report)
    return model


def _note(notes: list[str] | None, where: str, report: WeightsReport) -> None:
    """Add what a load did to the notes."""
    if notes is not None:
        notes.append(f"{where}: {report.loaded} entries from {report.source} ({report.kind})")
        notes += [f"{where}: {text}" for _, text in aside(report)]


def build_teacher(
    spec: TeacherSpec, num_classes: int, classes: ClassSet | None = None, notes: list[str] | None = None
) -> SegmentationModel:
    """The frozen teacher.

    Args:
        spec: where it comes from.
        num_classes: the data set's.
        classes: their names, which those of a saved network must be, where they are to be compared.
        notes: takes what the user should know of it.

    Raises:
        ConfigError: it scores another number of classes than the data set has, or the same in another order,
            its recipe is not trained yet, or it is not the network that the recipe says.
        WeightsError: its weights are those of a backbone, or do not fit.
    """
    named: ClassSet | None = None
    if spec.module is not None:
        teacher = load_module(spec.module, num_classes=num_classes)
    elif spec.weights is None:
        raise ConfigError(f"teacher.train: {spec.train!r} has to be trained first; `cirkd train` does so")
    elif spec.model is not None and find_card(spec.weights) is None:
        network = spec.model
        teacher = build_model(
            network.name, num_classes=num_classes, where="teacher.model", **network.settings
        )
        report = load_weights(teacher, spec.weights, reinit_classifier=network.reinit_classifier)
        require_whole(report, "a teacher")
        _note(notes, "teacher", report)
    else:
        loaded = load_model(spec.weights)
        if spec.model is not None:
            said = spec.model
            require_description(loaded, spec.weights, said.name, said.settings, where="teacher.model")
        teacher, named = loaded.model, loaded.classes
    if teacher.num_classes != num_classes:
        raise ConfigError(
            f"teacher: {spec.weights or spec.module} scores {teacher.num_classes} classes, the data set has "
            f"{num_classes}; take a teacher trained on the same classes"
        )
    if named is not None and classes is not None:
        differing = compare_classes(f"teacher {spec.weights}", named, classes)
        if notes is not None:
            notes.extend(differing)
    return teacher.eval().requires_grad_(False)


def seed_of(*numbers: int) -> int:
    """A seed that is a function of the numbers and of nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def build_run(spec: RunSpec, world: World) -> Run:
    """Build data, networks, losses and optimisers of one rank.

    The student's first weights depend on the seed and the network alone, so that methods that are compared
    start from the same student.
    """
    device, precision = world.device, choose_precision(spec.train.precision, world.device)
    if spec.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's matrix products refuse
    torch.use_deterministic_algorithms(spec.train.deterministic)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not spec.train.deterministic
    train_set, val_set = build_datasets(spec)
    classes = len(train_set.classes)
    torch.manual_seed(seed_of(spec.seed, 0))
    notes: list[str] = []
    student = build_network(spec.model, classes, "model", notes)
    torch.manual_seed(seed_of(spec.seed, 1))
    teacher = (
        build_teacher(spec.teacher, classes, train_set.classes, notes)
        if spec.distill is not None and spec.teacher is not None
        else None
    )
    losses = build_losses(spec, student, teacher, classes)
    student.taps = frozenset().union(*(loss.student_taps for loss in losses.values()))
    if teacher is not None:
        teacher.taps = frozenset().union(*(loss.teacher_taps for loss in losses.values()))
    specs = {name: item for name, item in spec.distill.losses.items() if item} if spec.distill else {}
    distiller = Distiller(student, losses, specs, spec.task, spec.train.steps, spec.seed)
    return Run(
        spec=spec,
        world=world,
        train_set=train_set,
        val_set=val_set,
        student=student,
        teacher=teacher if losses else None,
        step=_build_step(spec, world, distiller, teacher if losses else None, precision),
        precision=precision,
        notes=tuple(notes),
    )


def _build_step(
    spec: RunSpec, world: World, distiller: Distiller, teacher: SegmentationModel | None, precision: str
) -> TrainStep:
    """Move everything to the device, wrap what is trained, make the optimisers."""
    on_gpu = world.device.type == "cuda"
    channels_last = on_gpu and spec.train.channels_last
    student = distiller.student
    assert isinstance(student, SegmentationModel)
    require_memory(distiller.losses.values(), world.device)
    if on_gpu and world.size > 1 and spec.train.sync_batchnorm:
        synchronise_batchnorm(distiller)
    _move(distiller, world.device, channels_last)
    if teacher is not None:
        _move(teacher, world.device, channels_last)
    average = None
    if spec.train.ema is not None:
        averaging = get_ema_multi_avg_fn(spec.train.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    optimizer = build_optimizer(parameter_groups(student, distiller.losses, spec.optim), spec.optim)
    discriminators: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam(loss.discriminator.parameters(), **loss.discriminator_optimizer())
        for name, loss in distiller.discriminators()
        if loss.discriminator is not None
    }
    if spec.train.compile:
        student.compile()
        if teacher is not None:
            teacher.compile()
    return TrainStep(
        distiller,
        teacher,
        student.preprocessing,
        optimizer,
        discriminators,
        make_scaler(precision, world.device),
        spec.optim,
        spec.train.steps,
        precision,
        world,
        teacher_preprocessing=None if teacher is None else teacher.preprocessing,
        average=average,
        channels_last=channels_last,
        wrapped=_wrap(distiller, spec, world),
    )


def synchronise_batchnorm(distiller: Distiller) -> None:
    """Let the BatchNorms of the student and of the losses' layers take their statistics over all ranks.

    A discriminator keeps each rank's own: a gradient penalty differentiates twice through them, which
    SyncBatchNorm does not support. Their running statistics are averaged before they are used.
    """
    parts: list[tuple[nn.Module, str, nn.Module]] = [(distiller, "student", distiller.student)]
    for _, loss in distiller.named_losses():
        parts += [(loss, n, part) for n, part in loss.named_children() if part is not loss.discriminator]
    for owner, name, part in parts:
        setattr(owner, name, convert_sync_batchnorm(part))  # torch's drops the activations of BatchNormAct2d


def _move(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)


def _wrap(distiller: Distiller, spec: RunSpec, world: World) -> nn.Module:
    """DDP over the student and the losses' layers; no buffer is broadcast."""
    if world.size == 1:
        return distiller
    known = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers"  # in torch 2.15
    options: dict[str, Any] = {renamed if renamed in known else "broadcast_buffers": False}
    return DistributedDataParallel(
        distiller,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        **options,
        gradient_as_bucket_view=True,
        # Without a weight the auxiliary head gets no gradient, which DDP has to be told.
        find_unused_parameters=spec.task.aux_weight == 0 or spec.task.weight == 0,
    )
