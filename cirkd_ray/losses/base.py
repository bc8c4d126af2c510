"""What a distillation loss is: a module that turns two networks' outputs into named, unweighted scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from cirkd_ray.config import registry
from cirkd_ray.config.roles import Mutable
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.losses.groups import Group
from cirkd_ray.losses.hashing import bits_of_rank
from cirkd_ray.losses.paths import AUTOMATIC, Relations
from cirkd_ray.losses.whole import Size, WholeStep
from cirkd_ray.types import IGNORE_INDEX, SegmentationOutput

T = TypeVar("T")


@dataclass(frozen=True)
class LossInputs:
    """Everything that a loss may look at in one step.

    Attributes:
        student: the student's output on the local part of the batch.
        teacher: the teacher's output on the same images, without gradients.
        labels: N x H x W int64, `ignore_index` where a pixel does not count; larger than the maps.
        ignore_index: the label of pixels that do not count.
        step: the number of the optimiser step, from 0; random choices are functions of (seed, step, image).
        seed: the run's seed.
        micro: the number of the micro-batch within the step, under gradient accumulation.
        relations: kernels and precision of relational losses on CUDA devices.
        whole: the step's batch on this rank, where this is a part of it.
    """

    student: SegmentationOutput
    teacher: SegmentationOutput
    labels: Tensor
    ignore_index: int = IGNORE_INDEX
    step: int = 0
    seed: int = 0
    micro: int = 0
    relations: Relations = AUTOMATIC
    whole: WholeStep | None = None
    _step: WholeStep = field(init=False, repr=False, compare=False)
    _made: dict[tuple[object, ...], tuple[tuple[object, ...], Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        alone = self.whole or WholeStep({self.micro: self.labels}, None, self.ignore_index)
        object.__setattr__(self, "_step", alone)

    @property
    def step_batch(self) -> WholeStep:
        """All micro-batches of the step on this rank; this one alone, where it is not told of others."""
        return self._step

    def mask(self, size: Size, *how: object) -> Tensor:
        """Which pixels of a map count, or what is derived of that: see `WholeStep.mask`."""
        return self._step.mask(self.micro, size, *how)

    def bits(
        self, name: str, images: int, pixels: int, device: torch.device, micro: int | None = None
    ) -> Tensor:
        """Random bits (images x pixels) of the step's choice `name` for this rank's images of a micro-batch,
        this one by default: a function of (seed, step, image of the global batch)."""
        micro = self.micro if micro is None else micro
        return bits_of_rank(images, pixels, device, micro, *self.key(name))

    def shared(self, make: Callable[..., T], *args: object) -> T:
        """`make(*args)`, made once for all losses of the step that ask for the same of the same tensors.

        It is for what has no history: labels at another size, masks and their counts, the teacher's maps.
        What requires a gradient is made anew for each, so that each loss can be differentiated alone. Nobody
        may write to the result.

        Args:
            make: a function of a module, not a lambda, which would be another one each time.
            args: tensors, told apart by identity, and hashable values.
        """
        key = _key(make, args)
        if key in self._made:
            found: T = self._made[key][1]
            return found
        found = make(*args)
        if not (isinstance(found, Tensor) and found.requires_grad):
            self._made[key] = args, found
        return found

    def key(self, name: str) -> tuple[str, int, int, int]:
        """The key of this step's random choice `name` (see `hashing.py`), the same in all micro-batches.

        The last number was once that of the micro-batch; without it, all runs would draw anew.
        """
        return name, self.seed, self.step, 0


def _key(make: Callable[..., Any], args: tuple[object, ...]) -> tuple[object, ...]:
    """What tells a call apart; to be kept with the tensors, so that no other one gets their identity."""
    return make, torch.is_grad_enabled(), *(id(x) if isinstance(x, Tensor) else x for x in args)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Temperature = Mutable[Positive]
"""Divides logits or similarities before a softmax; a population may change it while it trains."""
Channels = int | Mapping[str, int]
"""Channels of a network's `feature`, or a mapping from the name of each map it can return to its channels."""


class DistillationLoss(nn.Module):
    """Base of every method.

    A subclass registers itself with `@LOSSES.register(NAME)` and returns from `forward` the terms that are
    active. Its settings are the keyword-only, annotated arguments of its `__init__` that have a default;
    what is common to all losses passes through: `def __init__(self, *, temperature: float = 1.0, **common:
    Any)` begins with `super().__init__(**common)`. A loss without settings of its own needs no `__init__`.

    Parameters (adapters, projectors) are trained with the student. Buffers (queues) are checkpointed and
    must be equal on all ranks by construction.

    Args:
        student_channels, teacher_channels: channels of the networks' maps (see `Channels`).
        num_classes: number of classes of the data set.

    Attributes:
        terms: the names of the scalars that it can return; a recipe gives each a weight.
        default_weights: the published weight of each term (1 where the dictionary is silent).
        active: the terms whose weight is not 0; set by `build_loss`, the others are never computed.
        student_taps, teacher_taps: encoder stages that the networks must return (see
            `SegmentationOutput.tap`).
        kind: the registered name; set by `build_loss`, for messages.
        opponent: the discriminator's place in the state dict. Read `discriminator` instead: this name is
            older and stays, because checkpoints hold it.
    """

    terms: ClassVar[tuple[str, ...]] = ()
    default_weights: ClassVar[Mapping[str, float]] = {}
    active: frozenset[str]
    kind: str = ""
    student_taps: frozenset[str] = frozenset()
    teacher_taps: frozenset[str] = frozenset()
    opponent: nn.Module | None

    def __init__(self, *, student_channels: Channels, teacher_channels: Channels, num_classes: int) -> None:
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.num_classes = num_classes
        self.opponent = None  # not a class attribute: that would hide a submodule of this name

    @property
    def discriminator(self) -> nn.Module | None:
        """A network that an optimiser of its own trains against the student, or None.

        It is part of the checkpoint. Its parameters require gradients in `discriminator_loss` alone.
        """
        return self.opponent

    @property
    def reads_teacher_aux(self) -> bool:
        """Whether it looks at the teacher's `aux`; if no loss does, that head is not computed."""
        return False

    @classmethod
    def together(cls, active: frozenset[str], settings: Mapping[str, Any]) -> Group:
        """Which images must be in one micro-batch for the active terms: consecutive ones in groups of so
        many, or `rank` or `batch` (see `groups.py`) where the terms depend on what that is. 1: any.

        Args:
            active: the terms.
            settings: the method's own, validated.
        """
        return 1

    def activate(self, terms: frozenset[str]) -> None:
        """Compute these terms alone from now on; a subclass drops the modules that none of them needs.

        Raises:
            ConfigError: a term that this loss does not have.
        """
        for term in terms - set(self.terms):
            raise ConfigError(f"loss {self.kind!r}: no term {term!r}{nearest(term, self.terms)}")
        self.active = terms

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The active terms: unweighted scalars, finite and differentiable even if every pixel is ignored."""
        raise NotImplementedError

    def discriminator_loss(self, inputs: LossInputs) -> Tensor:
        """What the discriminator minimises; called after the same step's `forward`, with its gradients on."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    def discriminator_optimizer(self) -> dict[str, Any]:
        """Arguments of `torch.optim.Adam` for the discriminator's parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")


LOSSES: registry.Registry[DistillationLoss] = registry.LOSSES


def channels_of(channels: Channels, tap: str, num_classes: int) -> int:
    """Channels of the map `tap`: `logits` and `aux` have one a class, an int speaks of `feature`."""
    if tap in ("logits", "aux"):
        return num_classes
    known = {"feature": channels} if isinstance(channels, int) else channels
    if tap not in known:
        raise ConfigError(f"{tap}: no such map to distil; this network has {', '.join(['logits', *known])}")
    return known[tap]


def build_loss(
    kind: str,
    *,
    student_channels: Channels,
    teacher_channels: Channels,
    num_classes: int,
    active: frozenset[str] | None = None,
    where: str = "",
    **settings: Any,
) -> DistillationLoss:
    """Build the loss `kind`.

    Args:
        kind: a registered name.
        student_channels, teacher_channels: channels of the networks' maps (see `Channels`).
        num_classes: number of classes of the data set.
        active: the terms to compute; all of them by default.
        where: the path of this loss in the recipe, for messages.
        settings: the method's own settings, validated.

    Raises:
        ConfigError: an unknown kind or setting, or a value out of its bounds.
    """
    cls = LOSSES.get(kind)
    context = {
        "student_channels": student_channels,
        "teacher_channels": teacher_channels,
        "num_classes": num_classes,
    }
    where = where or f"loss {kind!r}"
    try:
        loss = LOSSES.build(kind, context, settings, where)
    except ConfigError as error:
        # Settings are named with their path already; what a constructor finds wrong is not.
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    loss.kind = kind
    loss.activate(frozenset(cls.terms) if active is None else active)
    loss.register_forward_pre_hook(check_inputs)
    return loss


def check_inputs(loss: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of every built loss: the shapes, classes and labels that it is about to see.

    Label values are looked at on every call on the CPU, and on the first call alone elsewhere, where
    looking means to wait for the device (data sets check each label map as they load it).

    Raises:
        ConfigError: logits of another number of classes, labels of another shape, or a label that is no
            class.
    """
    inputs = args[0]
    assert isinstance(loss, DistillationLoss)
    assert isinstance(inputs, LossInputs)
    for who, output in (("student", inputs.student), ("teacher", inputs.teacher)):
        if output.logits.shape[1] != loss.num_classes:
            if output.logits.shape[1] == 0:
                continue  # of features alone: a loss that asks for its logits is refused by that name
            raise ConfigError(
                f"loss {loss.kind!r}: the {who}'s logits have {output.logits.shape[1]} classes, the data set "
                f"has {loss.num_classes}; train or load a {who} with num_classes={loss.num_classes}"
            )
    labels = inputs.labels
    if labels.ndim != 3 or labels.shape[0] != inputs.student.logits.shape[0]:
        raise ConfigError(
            f"loss {loss.kind!r}: labels must be N x H x W with one map an image, got {tuple(labels.shape)}"
        )
    if labels.is_meta:  # a dry run: shapes alone
        return
    if labels.device.type == "cpu" or not getattr(loss, "_labels_checked", False):
        check_labels(f"loss {loss.kind!r}", labels, loss.num_classes, inputs.ignore_index)
        loss._labels_checked = True  # type: ignore[assignment]


def check_labels(what: str, labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise a `ConfigError` for a label that is neither a class nor `ignore_index`; waits for the device."""
    wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        value = int(labels[wrong][0])
        raise ConfigError(
            f"{what}: label {value} is none of the {num_classes} classes (0..{num_classes - 1}) nor the "
            f"ignored {ignore_index}; check num_classes and the data set's label mapping"
        )
