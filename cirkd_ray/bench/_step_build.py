"""A recipe's step, and the same student's without distillation, on random images: no data, no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from cirkd_ray.bench._step_count import device_counters, stand_in
from cirkd_ray.config import RunSpec
from cirkd_ray.data import DATASETS
from cirkd_ray.data.loader import Batch, DeviceBatch, to_device
from cirkd_ray.device import autocast
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.train.build import assemble, build_datasets, choose_arithmetic
from cirkd_ray.train.distributed import World
from cirkd_ray.train.shared import SharedForward
from cirkd_ray.train.step import TrainStep
from cirkd_ray.train.untrained import untrained, untrained_teacher
from cirkd_ray.types import ClassSet, SegmentationOutput

Work = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        spec: the recipe.
        step, plain: its step, and that of the same student with the labels alone.
        shared: prepares images and runs the teacher for both.
        batch: a rank's micro-batch in main memory.
        precision: of the arithmetic.
    """

    spec: RunSpec
    step: TrainStep
    plain: TrainStep
    shared: SharedForward
    batch: Batch
    precision: str

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.step.world.device

    def moved(self) -> DeviceBatch:
        """The batch on the device."""
        return to_device(self.batch, self.device, self.device.type == "cuda")


@contextmanager
def ranks(number: int, device: torch.device) -> Iterator[World]:
    """The world of the first of so many ranks; the others are pretended: nothing is exchanged."""
    if number == 1:
        yield World(device=device)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())
    try:
        yield World(0, number, device, pretended=True)
    finally:
        dist.destroy_process_group()


def build(spec: RunSpec, world: World, images: int | None) -> Subject:
    """Build the networks with random weights; `images` a rank and micro-batch, by default the recipe's.

    Raises:
        ConfigError: the batch does not divide, or what a recipe's network or loss says.
    """
    spec, images = sized(spec, world, images)
    precision = choose_arithmetic(spec, world.device)
    classes = classes_of(spec)
    torch.manual_seed(0)
    teacher = untrained_teacher(spec, classes)
    students = [untrained(spec.model, len(classes), "model") for _ in range(2)]
    alone = spec.model_copy(update={"distill": None})
    steps = []
    found, shared = assemble((spec, alone), world, students, teacher, len(classes), precision)
    if shared.recorded is not None:
        shared.recorded.compared = device_counters() is None
    for each in found:
        if isinstance(each, Exception):
            raise each
        each.distiller.train()
        steps.append(each)
    return Subject(
        spec, steps[0], steps[1], shared, random_batch(spec, images, len(classes), world.device), precision
    )


def sized(spec: RunSpec, world: World, images: int | None) -> tuple[RunSpec, int]:
    """The recipe with so many images a rank and micro-batch, by default its own, and how many these are.

    Raises:
        ConfigError: its batch does not divide.
    """
    per_step = world.size * spec.train.accumulate
    if images is None and spec.train.batch_size % per_step:
        raise ConfigError(f"--ranks: {spec.train.batch_size} images do not divide by {per_step}; see --batch")
    images = images or spec.train.batch_size // per_step
    tree = spec.to_dict()
    tree["train"]["batch_size"] = images * per_step
    if device_counters() is not None:
        stand_in()
        if spec.train.relations_path == "auto":  # there is nothing to compare
            tree["train"]["relations_path"] = "fused"
    return RunSpec.model_validate(tree), images


def classes_of(spec: RunSpec) -> ClassSet:
    """The data set's classes; of its files where only they tell."""
    declared = getattr(DATASETS.get(spec.data.name), "classes", None)
    return declared if isinstance(declared, ClassSet) else build_datasets(spec)[0].classes


def random_batch(spec: RunSpec, images: int, classes: int, device: torch.device) -> Batch:
    """Random images, with labels in blocks as of objects."""
    assert spec.data.crop is not None
    height, width = spec.data.crop
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(0, classes, (images, -(-height // 32), -(-width // 32)), generator=generator)
    labels = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width].to(torch.uint8)
    batch = Batch(pixels.permute(0, 3, 1, 2), labels.contiguous(), torch.arange(images), True)
    if device.type == "cuda":
        return batch._replace(images=batch.images.pin_memory(), labels=batch.labels.pin_memory())
    return batch


def parts(subject: Subject) -> dict[str, Work]:
    """Name -> that part of a step, alone, with the backward pass where it has one.

    The losses get fresh leaves in the place of the student's maps, and the student has the labels' loss: so
    the parts add up to the step, but for what joins them.
    """
    step, plain = subject.step, subject.plain
    batch = subject.moved()
    preprocessing = step.distiller.student.preprocessing
    images = subject.shared.network_input(preprocessing, batch)

    def data() -> object:
        moved = subject.moved()
        return subject.shared.network_input(preprocessing, moved)

    def student() -> None:
        plain.optimizer.zero_grad(set_to_none=True)
        with autocast(subject.precision, subject.device):
            total, _ = plain.trained(images, batch.labels, None, 0, 0)
        plain.update.backward(total, 1.0)

    student()
    found: dict[str, Work] = {"data": data, "student": student}
    if step.distiller.losses:
        found["teacher"] = lambda: _taught(subject, batch, images)
        outputs = _maps(subject, batch, images)
        for name, loss in step.distiller.named_losses():
            found[f"loss {name}"] = _loss_work(subject, loss, outputs, batch)
    found["optimiser"] = plain.apply
    return found


def _taught(subject: Subject, batch: DeviceBatch, images: Tensor) -> SegmentationOutput:
    """The teacher's maps; `images` are the student's, which often are the teacher's, too."""
    shared, student = subject.shared, subject.step.distiller.student
    assert shared.teacher is not None
    if shared.teacher.preprocessing != student.preprocessing:
        images = shared.network_input(shared.teacher.preprocessing, batch)
    return shared.teach(images)


def _maps(
    subject: Subject, batch: DeviceBatch, images: Tensor
) -> tuple[SegmentationOutput, SegmentationOutput]:
    """The student's and the teacher's maps, without history."""
    with torch.no_grad(), autocast(subject.precision, subject.device):
        student = subject.step.distiller.student(images)
    return student, _taught(subject, batch, images)


def _loss_work(
    subject: Subject,
    loss: DistillationLoss,
    outputs: tuple[SegmentationOutput, SegmentationOutput],
    batch: DeviceBatch,
) -> Work:
    student, teacher = outputs
    distiller = subject.step.distiller
    inputs = LossInputs(student, teacher, batch.labels, seed=distiller.seed, relations=distiller.relations)

    def leaf(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().requires_grad_()

    def work() -> None:
        loss.zero_grad(set_to_none=True)
        leaves = SegmentationOutput(
            student.logits.detach().requires_grad_(),
            leaf(student.aux),
            student.feature.detach().requires_grad_(),
            {name: x.detach().requires_grad_() for name, x in (student.stages or {}).items()} or None,
        )
        with autocast(subject.precision, subject.device):
            terms = loss(replace(inputs, student=leaves))
        torch.autograd.backward(torch.stack([*terms.values()]).sum())

    return work
