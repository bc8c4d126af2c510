"""A step's shapes before there is a step: the student and the losses on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import UserError
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.models.encoders import cells
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import SegmentationOutput

IMAGES = 2
"""BatchNorm of globally pooled maps needs two in training."""


def rehearse(
    spec: RunSpec,
    student: SegmentationModel,
    teacher: SegmentationModel,
    losses: Mapping[str, DistillationLoss],
) -> list[str]:
    """Let every loss meet maps of the sizes that the recipe's crop gives, without computing any.

    All tensors are on torch's `meta` device: they have a shape and a type, but no values, so that a large
    network takes no longer than a small one. Modules may be on any device and keep their values; student and
    losses are put in training mode. The teacher's maps are made from what it declares: they are resized to
    the student's anyway, and a network from elsewhere may do anything in its forward.

    Returns:
        What cannot be known without values, a sentence each.

    Raises:
        UserError: what a loss finds wrong with its settings, given the maps.
    """
    assert spec.data.crop is not None
    height, width = spec.data.crop
    notes: list[str] = []
    with torch.no_grad(), torch.device("meta"):
        labels = torch.zeros(IMAGES, height, width, dtype=torch.int64)
        try:
            seen = _shapes(student.train(), torch.zeros(IMAGES, 3, height, width))
        except Exception as error:  # of torch, where an operator has no such form, or of timm
            return [unknown(f"model: {student.name} on {height} x {width} pixels", error)]
        inputs = LossInputs(seen, declared_output(teacher, height, width), labels)
        for name, loss in losses.items():
            try:
                _shapes(loss.train(), inputs)
            except UserError:
                raise
            except Exception as error:  # of anybody's code
                notes.append(unknown(f"distill.losses.{name}", error))
    return notes


def unknown(what: str, error: Exception) -> str:
    """The note on what failed for want of values."""
    reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:160]
    return f"{what}: cannot be checked without values ({reason}); the first step will show"


def _shapes(module: nn.Module, argument: Any) -> Any:
    """What the module returns, with parameters and buffers that have shapes alone in place of its own."""
    held = (*module.named_parameters(), *module.named_buffers())
    return functional_call(module, {name: torch.empty_like(t, device="meta") for name, t in held}, argument)


def declared_output(model: SegmentationModel, height: int, width: int) -> SegmentationOutput:
    """Empty maps of the channels and strides that a network declares, for images of that size."""

    def empty(name: str, channels: int) -> Tensor:
        stride = model.strides[name]
        return torch.zeros(IMAGES, channels, cells(height, stride), cells(width, stride))

    return SegmentationOutput(
        logits=empty("logits", model.num_classes),
        aux=empty("aux", model.num_classes) if "aux" in model.strides else None,
        feature=empty("feature", model.channels["feature"]),
        stages={name: empty(name, model.channels[name]) for name in model.taps} or None,
    )
