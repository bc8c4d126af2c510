"""Everything trainable in one module: the student and the losses' own layers, so that one DDP covers both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirkd_ray.config import LossSpec, RunSpec, TaskSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.losses.counts import CountsAhead
from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.task import AUX, TaskLoss
from cirkd_ray.losses.tasks.base import TASK_LOSSES, TaskTerm
from cirkd_ray.losses.whole import WholeStep
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import SegmentationOutput


class Distiller(nn.Module):
    """Student, task loss and distillation losses.

    Args:
        student: the network that is trained.
        losses: name -> loss.
        specs: name -> its weights and schedule.
        task: the losses with the labels and their weights.
        steps: length of the run, for weight schedules.
        seed: the run's seed, for the losses' random choices.
        shares: of the classes, see `TaskTerm`.

    Attributes:
        relations: kernels and precision of relational losses on CUDA devices.
        whole: the micro-batches of the step that is done; None where a forward is a whole step.
        seen: what the losses saw in the last forward, where one of them has a discriminator that learns from
            it. It is no result of `forward`: DDP would take every map in it for one that gets a gradient.
    """

    def __init__(
        self,
        student: SegmentationModel,
        losses: Mapping[str, DistillationLoss],
        specs: Mapping[str, LossSpec],
        task: TaskSpec,
        steps: int,
        seed: int = 0,
        shares: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.specs = dict(specs)
        self.task = task
        self.task_loss = TaskLoss(
            build_task_losses(task, student.num_classes, shares), align_corners=student.align_corners
        )
        self.steps = steps
        self.seed = seed
        self.relations = Relations()
        self.whole: WholeStep | None = None
        self.seen: LossInputs | None = None
        self._counts = CountsAhead()
        self._weights: tuple[tuple[float, ...], Tensor] | None = None
        for _, loss in self.discriminators():
            assert loss.discriminator is not None
            loss.discriminator.requires_grad_(False)  # trained by its own optimiser, outside DDP

    def named_losses(self) -> Iterator[tuple[str, DistillationLoss]]:
        """The distillation losses with their types."""
        for name, loss in self.losses.items():
            assert isinstance(loss, DistillationLoss)
            yield name, loss

    def discriminators(self) -> list[tuple[str, DistillationLoss]]:
        """The losses that train a network against the student."""
        return [(name, loss) for name, loss in self.named_losses() if loss.discriminator is not None]

    def forward(
        self, images: Tensor, labels: Tensor, teacher: SegmentationOutput | None, step: int, micro: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term by name."""
        whole = self.whole or WholeStep({micro: labels})
        size = (labels.shape[-2], labels.shape[-1])
        if micro == whole.first:
            self._counts.count(whole, size)
        output = self.student(images)
        terms = self._task_terms(output, labels, whole.scale(size)) if self.task.weight else {}
        weights = self.task_weights()
        if teacher is not None:
            inputs = LossInputs(
                output,
                teacher,
                labels,
                step=step,
                micro=micro,
                seed=self.seed,
                relations=self.relations,
                whole=whole,
            )
            for name, loss in self.named_losses():
                found, its_weights = self._distil(name, loss, inputs)
                terms.update(found)
                weights.update(its_weights)
            self._counts.learn(whole)
            self.seen = inputs if self.discriminators() else None
        return self._weighted_sum(terms, weights, output.logits), terms

    def task_weights(self) -> dict[str, float]:
        """Weights of the terms of the losses with the labels."""
        whole = {name: self.task.weight * spec.weight for name, spec in self.task.losses.items() if spec}
        return whole | {name + AUX: weight * self.task.aux_weight for name, weight in whole.items()}

    def _task_terms(self, output: SegmentationOutput, labels: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The terms of the losses with the labels."""
        terms: dict[str, Tensor] = self.task_loss(
            output if self.task.aux_weight else output._replace(aux=None), labels, scale
        )
        return terms

    def _weighted_sum(self, terms: dict[str, Tensor], weights: dict[str, float], like: Tensor) -> Tensor:
        """The weighted sum of the terms that have a weight; 0 where none has."""
        counted = {name: weights[name] for name in terms if weights.get(name)}
        if not counted:
            return like.new_zeros(())
        values = torch.stack([terms[name] for name in counted])
        return (values * self._on_device(tuple(counted.values()), values)).sum()

    def _on_device(self, weights: tuple[float, ...], like: Tensor) -> Tensor:
        """The weights beside `like`; those of the last step stay there."""
        if self._weights is None or self._weights[0] != weights:
            held = torch.tensor(weights, dtype=like.dtype, pin_memory=like.is_cuda)
            self._weights = weights, held.to(like.device, non_blocking=True)
        return self._weights[1]

    def _distil(
        self, name: str, loss: DistillationLoss, inputs: LossInputs
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        spec = self.specs[name]
        factor = spec.schedule.factor(inputs.step, self.steps) if spec.schedule else 1.0
        found = loss(inputs)
        labelled = {term_name(name, loss, term): value for term, value in found.items()}
        weights = {term_name(name, loss, term): factor * term_weight(spec, term) for term in found}
        return labelled, weights


def term_name(name: str, loss: DistillationLoss, term: str) -> str:
    """`NAME.TERM`, or just `NAME` where the loss has one term."""
    return name if len(loss.terms) == 1 else f"{name}.{term}"


def term_weight(spec: LossSpec, term: str) -> float:
    """The recipe's weight of a term, before its schedule."""
    if spec.weights is not None:
        return spec.weights[term]
    return 1.0 if spec.weight is None else spec.weight


def build_task_losses(task: TaskSpec, classes: int, shares: Tensor | None) -> dict[str, TaskTerm]:
    """Every loss with the labels whose weight is not 0.

    Args:
        shares: of the classes, see `TaskTerm`.
    """
    context = {"num_classes": classes, "shares": shares}
    return {
        name: TASK_LOSSES.build(item.kind, context, item.settings, _checked(f"task.losses.{name}"))
        for name, item in task.losses.items()
        if item is not None and item.weight
    }


def _checked(path: str) -> str:
    """The path of a loss, whose name must be that of a module.

    Raises:
        ConfigError: it cannot be.
    """
    name = path.rpartition(".")[2]
    if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in RESERVED:
        raise ConfigError(f"{path}: choose a name of letters, digits and _ that torch or a run does not use")
    return path


RESERVED = ("total", "grad_norm", "weights")
"""Names that stand beside those of losses in a run's figures."""


def build_losses(
    spec: RunSpec, student: SegmentationModel, teacher: SegmentationModel | None, classes: int
) -> dict[str, DistillationLoss]:
    """Every distillation loss of the recipe whose weight is not 0."""
    if spec.distill is None or teacher is None:
        return {}
    context: dict[str, Any] = {
        "student_channels": student.channels,
        "teacher_channels": teacher.channels,
        "num_classes": classes,
    }
    losses = {}
    for name, item in spec.distill.losses.items():
        if item is None:
            continue
        where = _checked(f"distill.losses.{name}")
        active = frozenset(t for t in LOSSES.get(item.kind).terms if term_weight(item, t) > 0)
        if active:
            losses[name] = build_loss(item.kind, **context, active=active, where=where, **item.settings)
    return losses
