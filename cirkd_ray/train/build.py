"""From a RunSpec to the objects of one rank."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from cirkd_ray.config import ModelSpec, RunSpec, TeacherSpec
from cirkd_ray.data import SegmentationDataset, build_dataset
from cirkd_ray.data.codec import shown
from cirkd_ray.data.frequencies import class_shares
from cirkd_ray.device import choose_precision
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.evaluate.inference import ONE_VIEW, SlidingWindow, Views
from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.size import require_memory
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.average import StudentAverage
from cirkd_ray.train.batchnorm import count_on_host, synchronise_batchnorm
from cirkd_ray.train.distiller import Distiller, build_losses
from cirkd_ray.train.distributed import Exchange, World, check_batchnorm_ranks
from cirkd_ray.train.isolate import isolated
from cirkd_ray.train.optim import build_discriminator_optimizer, build_optimizer, parameter_groups
from cirkd_ray.train.shared import SharedForward, move
from cirkd_ray.train.step import TrainStep
from cirkd_ray.types import PADDING_LABEL, ClassSet
from cirkd_ray.weights.loading import WeightsReport, aside, load_weights
from cirkd_ray.weights.open import open_network
from cirkd_ray.weights.package import numbered_classes


@dataclass(frozen=True)
class Run:
    """Everything that one rank trains with; the members of a cohort share `shared` and the data sets."""

    spec: RunSpec
    world: World
    train_set: SegmentationDataset
    val_set: SegmentationDataset
    student: SegmentationModel
    shared: SharedForward
    step: TrainStep
    precision: str
    notes: tuple[str, ...] = ()
    """What the user should know of the weights that the networks start with."""

    @property
    def teacher(self) -> SegmentationModel | None:
        """The frozen network that the run's losses learn from; None without losses."""
        return self.shared.teacher if self.step.distiller.losses else None

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
    if train.span and val.span and train.span != val.span:  # of sets that cannot declare one
        ranges = f"{shown(train.span)} in {splits[0]!r} and from {shown(val.span)} in {splits[1]!r}"
        raise DataError(f"data: images are scaled from {ranges}; convert them all to 8 bits alike")
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
    """Build data, networks, losses and optimisers of one rank: a cohort of one."""
    (found,) = build_cohort([spec], world)
    if isinstance(found, Exception):
        raise found
    return found


def build_cohort(specs: Sequence[RunSpec], world: World) -> list[Run | Exception]:
    """Build what one rank trains of runs that share data and teacher; an error where one of them fails.

    A student's first weights depend on the seed and the network alone, so that methods that are compared
    start from the same student. What is drawn for a member does not depend on the others.

    Raises:
        UserError: what the members share is wrong.
    """
    first = specs[0]
    precision = choose_arithmetic(first, world.device)
    train_set, val_set = build_datasets(first)
    classes = len(train_set.classes)
    notes: list[list[str]] = [[] for _ in specs]
    students = [
        isolated(partial(_student, spec, classes, told), world)
        for spec, told in zip(specs, notes, strict=True)
    ]
    torch.manual_seed(seed_of(first.seed, 1))
    teacher, of_teacher = None, list[str]()
    source = next((spec.teacher for spec in specs if spec.distill is not None), None)
    if source is not None:
        teacher = build_teacher(source, classes, train_set.classes, of_teacher)
    shares = class_shares(train_set) if any(map(_wants_shares, specs)) else None
    steps, shared = assemble(specs, world, students, teacher, classes, precision, shares)
    found: list[Run | Exception] = []
    for spec, student, step, told in zip(specs, students, steps, notes, strict=True):
        if isinstance(student, Exception) or isinstance(step, Exception):
            found.append(student if isinstance(student, Exception) else step)  # type: ignore[arg-type]
            continue
        told += of_teacher if spec.distill is not None else []
        found.append(Run(spec, world, train_set, val_set, student, shared, step, precision, tuple(told)))
    return found


def _wants_shares(spec: RunSpec) -> bool:
    """Whether a loss with the labels weighs classes by what the data show."""
    return any(item.settings.get("class_weights") == "balanced" for item in spec.task.losses.values() if item)


def _student(spec: RunSpec, classes: int, notes: list[str]) -> SegmentationModel:
    torch.manual_seed(seed_of(spec.seed, 0))
    return build_network(spec.model, classes, "model", notes)


def choose_arithmetic(spec: RunSpec, device: torch.device) -> str:
    """Set this process up for the run's arithmetic; its precision."""
    if spec.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's matrix products refuse
    torch.use_deterministic_algorithms(spec.train.deterministic)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not spec.train.deterministic
    if device.type == "cuda":  # TF32 for what autocast leaves in float32
        torch.set_float32_matmul_precision("highest" if spec.train.deterministic else "high")
    return choose_precision(spec.train.precision, device)


def assemble(
    specs: Sequence[RunSpec],
    world: World,
    students: Sequence[SegmentationModel | Exception],
    teacher: SegmentationModel | None,
    classes: int,
    precision: str,
    shares: torch.Tensor | None = None,
) -> tuple[list[TrainStep | Exception], SharedForward]:
    """The step of each student with its recipe's losses, and what they share: the teacher, if one has losses.

    Args:
        students: an error in the place of one that failed is handed through.
        shares: of the classes, for losses with the labels that ask for them.
    """
    state, device = torch.get_rng_state(), world.device
    distillers = [
        student
        if isinstance(student, Exception)
        else isolated(partial(_distiller, spec, student, teacher, classes, state, shares), world)
        for spec, student in zip(specs, students, strict=True)
    ]
    losses = [x for d in distillers if isinstance(d, Distiller) for _, x in d.named_losses()]
    first, wanted = specs[0], specs[0].train.channels_last
    asked = any(spec.teacher is not None and spec.teacher.shard for spec in specs if spec.distill is not None)
    sharded = asked and world.size > 1 and not world.pretended
    shared = SharedForward(None, precision, device, _of_student(wanted, device), state, sharded)
    if teacher is not None and losses:
        shared.use(teacher, losses, first.train, world)
    steps = [
        distiller
        if isinstance(distiller, Exception)
        else isolated(partial(_build_step, spec, world, distiller, precision), world)
        for spec, distiller in zip(specs, distillers, strict=True)
    ]
    return steps, shared


def build_joining(spec: RunSpec, beside: Run) -> Run | Exception:
    """Build a run that joins another, which is under way, and shares its data and its teacher."""
    return isolated(partial(_joining, spec, beside), beside.world)


def _joining(spec: RunSpec, beside: Run) -> Run:
    classes, shared, notes = beside.train_set.classes, beside.shared, list[str]()
    student, teacher = _student(spec, len(classes), notes), shared.teacher
    if teacher is None:  # nobody had losses yet
        torch.manual_seed(seed_of(spec.seed, 1))
        if spec.distill is not None and spec.teacher is not None:
            teacher = build_teacher(spec.teacher, len(classes), classes)
        shared.generator = torch.get_rng_state()
    assert shared.generator is not None
    shares = class_shares(beside.train_set) if _wants_shares(spec) else None
    distiller = _distiller(spec, student, teacher, len(classes), shared.generator, shares)
    losses = [loss for _, loss in distiller.named_losses()]
    if losses and teacher is not None and spec.teacher is not None:
        if any(loss.reads_teacher_aux for loss in losses) and getattr(teacher, "auxiliary", None) is None:
            teacher = build_teacher(spec.teacher, len(classes), classes)  # nobody read that head before
        shared.use(teacher, losses, spec.train, beside.world)
    step = _build_step(spec, beside.world, distiller, beside.precision)
    return replace(beside, spec=spec, student=student, step=step, notes=tuple(notes))


def _distiller(
    spec: RunSpec,
    student: SegmentationModel,
    teacher: SegmentationModel | None,
    classes: int,
    state: torch.Tensor,
    shares: torch.Tensor | None,
) -> Distiller:
    """A student and its losses, whose first values are drawn from a generator in this state."""
    torch.set_rng_state(state)
    losses = build_losses(spec, student, teacher, classes)
    student.taps = frozenset().union(*(loss.student_taps for loss in losses.values()))
    specs = {name: item for name, item in spec.distill.losses.items() if item} if spec.distill else {}
    distiller = Distiller(student, losses, specs, spec.task, spec.train.steps, spec.seed, shares)
    distiller.relations = Relations(spec.train.relations_path, spec.train.relations, spec.train.deterministic)
    return distiller


def _build_step(spec: RunSpec, world: World, distiller: Distiller, precision: str) -> TrainStep:
    """Move what is trained to the device, wrap it, make the optimisers."""
    on_gpu = world.device.type == "cuda"
    student = distiller.student
    require_memory(distiller.losses.values(), world.device)
    check_batchnorm_ranks(spec, world.size, on_gpu)
    if on_gpu and world.size > 1 and spec.train.sync_batchnorm:
        synchronise_batchnorm(distiller, spec.train.batchnorm_ranks or world.size, world)
    move(distiller, world.device, _of_student(spec.train.channels_last, world.device))
    average = None if spec.train.ema is None else StudentAverage(student, spec.train.ema)
    optimizer = build_optimizer(parameter_groups(student, distiller.losses, spec.optim), spec.optim)
    discriminators: dict[str, torch.optim.Optimizer] = {
        name: build_discriminator_optimizer(loss.discriminator, loss.discriminator_optimizer())
        for name, loss in distiller.discriminators()
        if loss.discriminator is not None
    }
    if spec.train.compile is True:
        student.compile()
    step = TrainStep(
        distiller,
        optimizer,
        discriminators,
        spec.optim,
        spec.train.steps,
        precision,
        world,
        average=average,
        exchange=Exchange.of(spec),
    )
    count_on_host(distiller, average)  # after DDP, which wants all tensors on one device when it begins
    return step


def _of_student(channels_last: bool | str, device: torch.device) -> bool:
    """Whether a student has the channel last in memory."""
    return bool(channels_last) if device.type == "cuda" else channels_last == "always"
