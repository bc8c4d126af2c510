"""Everything trainable in one module: the student and the losses' own layers, so that one DDP covers both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from cirkd_ray.config import LossSpec, RunSpec, TaskSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.losses.task import TaskLoss
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import SegmentationOutput


class Distiller(nn.Module):
    """Student, task loss and distillation losses.

    Args:
        student: the network that is trained.
        losses: name -> loss.
        specs: name -> its weights and schedule.
        task: weights of the cross-entropy terms.
        steps: length of the run, for weight schedules.
        seed: the run's seed, for the losses' random choices.

    Attributes:
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
    ) -> None:
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.specs = dict(specs)
        self.task = task
        self.task_loss = TaskLoss(align_corners=student.align_corners)
        self.steps = steps
        self.seed = seed
        self.seen: LossInputs | None = None
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
        output = self.student(images)
        terms = self._task_terms(output, labels)
        total = output.logits.new_zeros(()) + sum_terms(terms, self.task_weights())
        if teacher is not None:
            inputs = LossInputs(output, teacher, labels, step=step, micro=micro, seed=self.seed)
            for name, loss in self.named_losses():
                found, weights = self._distil(name, loss, inputs)
                total = total + sum_terms(found, weights)
                terms.update(found)
            self.seen = inputs if self.discriminators() else None
        return total, terms

    def task_weights(self) -> dict[str, float]:
        """Weights of the cross-entropy terms."""
        return {"task": self.task.weight, "task_aux": self.task.weight * self.task.aux_weight}

    def _task_terms(self, output: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        """The cross-entropy terms that have a weight."""
        if self.task.weight == 0:
            return {}
        terms: dict[str, Tensor] = self.task_loss(
            output if self.task.aux_weight else output._replace(aux=None), labels
        )
        return terms

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


def sum_terms(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor | float:
    """The weighted sum; terms without a weight do not count."""
    total: Tensor | float = 0.0
    for name, value in terms.items():
        if weights.get(name):
            total = total + weights[name] * value
    return total


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
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ConfigError(
                f"distill.losses.{name}: choose a name of letters, digits and _ that torch does not use"
            )
        active = frozenset(t for t in LOSSES.get(item.kind).terms if term_weight(item, t) > 0)
        if active:
            where = f"distill.losses.{name}"
            losses[name] = build_loss(item.kind, **context, active=active, where=where, **item.settings)
    return losses
