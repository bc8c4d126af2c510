"""Losses that compare one map of the student with one of the teacher, and what they do to maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cirkd_ray.device import no_autocast
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.base import DistillationLoss, LossInputs, channels_of
from cirkd_ray.types import SegmentationOutput

SHORTEST = 1e-12
"""Length under which vectors are not normalised."""


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (N x C x H x W) at another size, bilinearly; itself where the size is right."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pool_map(x: Tensor, size: int) -> Tensor:
    """The mean (N x C x H x W) over size x size pixels; of fewer at the end."""
    return F.avg_pool2d(x, size, ceil_mode=True)


def pool_mask(mask: Tensor, size: int) -> Tensor:
    """The mask (N x H x W) of a map pooled over size x size pixels: true if any of them counts."""
    return F.max_pool2d(mask.to(torch.float32).unsqueeze(1), size, ceil_mode=True).squeeze(1) > 0


def full_precision(x: Tensor) -> Tensor:
    """float32 for half types, itself otherwise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Unit(torch.autograd.Function):
    """`F.normalize` with a third of its operations in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min_(SHORTEST)
        found: Tensor = x / norm
        ctx.dim = dim
        ctx.save_for_backward(found, norm)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        found, norm = ctx.saved_tensors
        along = torch.linalg.vecdot(found, grads[0], dim=ctx.dim).unsqueeze(ctx.dim)
        return torch.addcmul(grads[0], found, along, value=-1).div_(norm), None


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """L2-normalised along `dim`; differentiable once."""
    return _Unit.apply(x, dim)  # type: ignore[no-any-return]


def _target(teacher: Tensor, size: tuple[int, int]) -> Tensor:
    """The teacher's map as losses see it."""
    return resize_map(full_precision(teacher.detach()), size)


def tokens(x: Tensor) -> Tensor:
    """N x C x H x W -> N x HW x C."""
    return x.flatten(2).transpose(1, 2)


class MapPair(NamedTuple):
    """What `MapLoss.compute` sees.

    Attributes:
        student: N x C_s x h x w in float32 or float64, after the adapter.
        teacher: N x C_t x h x w, without gradient, resized to the student's size.
        labels: N x h x w, nearest.
        mask: N x h x w bool, false where ignored; None where the setting `mask_ignored` is off.

    The teacher's map, labels and mask are those of all losses that look at the same maps: do not write to
    them.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    mask: Tensor | None


class Taught(NamedTuple):
    """A micro-batch without the student: its number, and the rest as of `MapPair`."""

    micro: int
    teacher: Tensor
    labels: Tensor
    mask: Tensor | None


class MapLoss(DistillationLoss):
    """Base of losses that compare one map of the student with one of the teacher.

    The student's map passes an adapter (a 1x1 convolution without bias) where `adapted` asks for it, the
    teacher's map is resized bilinearly to the student's size where they differ, and `compute` runs without
    autocast, in float32.

    Args:
        student_tap, teacher_tap: `feature`, `logits`, `aux` or an encoder stage.
        mask_ignored: leave ignored pixels out.
        common: what every loss takes.

    Attributes:
        adapted: `auto` where channels differ, `always`, or `never` for losses that compare relations.
    """

    adapted: ClassVar[Literal["auto", "always", "never"]] = "auto"

    def __init__(
        self,
        *,
        student_tap: str = "feature",
        teacher_tap: str = "feature",
        mask_ignored: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.student_tap, self.teacher_tap, self.mask_ignored = student_tap, teacher_tap, mask_ignored
        self.student_width = channels_of(self.student_channels, student_tap, self.num_classes)
        self.teacher_width = channels_of(self.teacher_channels, teacher_tap, self.num_classes)
        plain = {"feature", "logits", "aux"}
        self.student_taps = frozenset({student_tap} - plain)
        self.teacher_taps = frozenset({teacher_tap} - plain)
        self.adapter: nn.Module = nn.Identity()
        if self.adapted == "always" or (self.adapted == "auto" and self.student_width != self.teacher_width):
            self.adapter = nn.Conv2d(self.student_width, self.teacher_width, 1, bias=False)

    @property
    def reads_teacher_aux(self) -> bool:
        """Whether that is its map."""
        return self.teacher_tap == "aux"

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        student = tap_map(self.kind, "student", inputs.student, self.student_tap, self.student_width)
        teacher = tap_map(self.kind, "teacher", inputs.teacher, self.teacher_tap, self.teacher_width)
        size = (student.shape[-2], student.shape[-1])
        labels, valid = inputs.step_batch.at(inputs.micro, size)
        mask = valid if self.mask_ignored else None
        student = self.adapt(student)
        with no_autocast(student):
            teacher = inputs.shared(_target, teacher, size)
            return self.compute(MapPair(full_precision(student), teacher, labels, mask), inputs)

    def adapt(self, student: Tensor) -> Tensor:
        """The student's map as it is compared; runs under autocast."""
        adapted: Tensor = self.adapter(student)
        return adapted

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        """The active terms."""
        raise NotImplementedError

    def of_step(self, pair: MapPair, inputs: LossInputs) -> Iterator[Taught]:
        """What `pair` holds of the teacher, of each of the step's micro-batches on this rank, in order."""
        size, step = (pair.teacher.shape[-2], pair.teacher.shape[-1]), inputs.step_batch
        for micro in step.labels:
            if micro == inputs.micro:
                yield Taught(micro, pair.teacher, pair.labels, pair.mask)
                continue
            output = step.taught(micro)
            teacher = tap_map(self.kind, "teacher", output, self.teacher_tap, self.teacher_width)
            labels, mask = step.at(micro, size)
            yield Taught(micro, _target(teacher, size), labels, mask if self.mask_ignored else None)


def row_weights(rows: Tensor, mask: Tensor | None, inputs: LossInputs, *how: object) -> Tensor:
    """N x L weights, without gradient, that turn a sum over pixels into their mean over the global batch.

    Args:
        rows: N x L x anything, of the L pixels that count or are derived of them.
        mask: of the pair, or None for all pixels.
        how: as of `WholeStep.mask`.
    """
    if mask is None:
        return rows.new_full(rows.shape[:2], 1.0 / rows[..., 0].numel())
    size = (mask.shape[-2], mask.shape[-1])
    weights = inputs.shared(torch.mul, inputs.mask(size, *how), inputs.step_batch.scale(size, *how))
    return weights.flatten(1).to(rows.dtype)


def pixel_scale(mask: Tensor | None, inputs: LossInputs, *how: object) -> Tensor | None:
    """The factor that turns a sum over the pixels of a pair's mask into their mean over the global batch of
    the step, counted once; None without one.

    Args:
        how: as of `WholeStep.mask`, where the terms are not pixels but derived of them.
    """
    return None if mask is None else inputs.step_batch.scale((mask.shape[-2], mask.shape[-1]), *how)


class LogitLoss(MapLoss):
    """Base of losses that compare logits, unless a recipe names other taps."""

    def __init__(self, *, student_tap: str = "logits", teacher_tap: str = "logits", **common: Any) -> None:
        super().__init__(student_tap=student_tap, teacher_tap=teacher_tap, **common)


def tap_map(kind: str, who: str, output: SegmentationOutput, tap: str, width: int) -> Tensor:
    """The map `tap` of the student's or teacher's output.

    Raises:
        ConfigError: there is no such map, or it has other channels than the loss was built for.
    """
    try:
        value = output.tap(tap)
    except KeyError as error:
        raise ConfigError(
            f"loss {kind!r}, {who}_tap: {error.args[0]}; take one of these, or leave this loss out"
        ) from None
    if value.shape[1] != width:
        raise ConfigError(
            f"loss {kind!r}: the {who}'s map {tap!r} has {value.shape[1]} channels, but the loss was built "
            f"for {width}; {who}_channels must be the network's"
        )
    return value
