"""Small inputs for the contract tests of losses, and what each loss's own test module says about it.

The module `tests.unit.test_losses_KIND` belongs to the loss KIND. It may define `SETTINGS`, the settings
that make the loss small, and `JOINED`, further settings under which ranks compute what one process with the
joined batch does. It defines `naive(loss, inputs)`, which recomputes the terms from the equations without the
code under test, unless `cirkd bench losses` has such a function already.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.bench._losses_naive import NAIVE
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.types import SegmentationOutput

CLASSES, STUDENT, TEACHER = 4, 6, 8
HEIGHT, WIDTH, SCALE = 6, 8, 4
KINDS = LOSSES.names()


def own_module(kind: str) -> Any:
    return importlib.import_module(f"tests.unit.test_losses_{kind}")


def naive_of(kind: str) -> Callable[[DistillationLoss, LossInputs], dict[str, Tensor]]:
    function: Callable[[DistillationLoss, LossInputs], dict[str, Tensor]]
    function = NAIVE[kind] if kind in NAIVE else own_module(kind).naive
    return function


def small_loss(kind: str, active: frozenset[str] | None = None, **settings: Any) -> DistillationLoss:
    """The loss with its module's SETTINGS, in float64 and eval mode (fixed BatchNorm statistics)."""
    torch.manual_seed(0)
    loss = build_loss(
        kind,
        student_channels=STUDENT,
        teacher_channels=TEACHER,
        num_classes=CLASSES,
        active=active,
        **{**getattr(own_module(kind), "SETTINGS", {}), **settings},
    )
    return loss.double().eval()


def network_output(
    channels: int, images: int, seed: int, dtype: torch.dtype, scale: int = 1
) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(seed)
    size = (HEIGHT * scale, WIDTH * scale)
    maps = [
        torch.randn(images, c, *size, generator=generator).to(dtype) for c in (CLASSES, CLASSES, channels)
    ]
    return SegmentationOutput(*maps)


def make_labels(images: int, seed: int = 2) -> Tensor:
    """Blocks of SCALE x SCALE pixels; about one in six ignored, every class present in every image."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(-1, CLASSES + 1, (images, HEIGHT, WIDTH), generator=generator).clamp(
        max=CLASSES - 1
    )
    small[:, 0, :CLASSES] = torch.arange(CLASSES)
    return small.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)


def make_inputs(
    images: int = 2,
    dtype: torch.dtype = torch.float64,
    labels: Tensor | None = None,
    step: int = 0,
    teacher_scale: int = 1,
) -> LossInputs:
    student = network_output(STUDENT, images, 2 * step, dtype)
    student = SegmentationOutput(*(t.requires_grad_() for t in student[:3]))
    teacher = network_output(TEACHER, images, 2 * step + 1, dtype, teacher_scale)
    labels = make_labels(images, seed=step) if labels is None else labels
    return LossInputs(student, teacher, labels, step=step, seed=7)


def small_labels(inputs: LossInputs) -> Tensor:
    """Labels at map size, by the definition of nearest neighbour for a whole factor."""
    return inputs.labels[:, ::SCALE, ::SCALE]


def student_maps(inputs: LossInputs) -> list[Tensor]:
    return [inputs.student.logits, inputs.student.aux, inputs.student.feature]  # type: ignore[list-item]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()
