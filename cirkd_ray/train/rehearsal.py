"""A step's shapes before there is a step: the student and the losses on tensors that hold nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError, UserError, first_line
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.models.encoders import cells
from cirkd_ray.models.external import failing_as
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.split import smallest_share
from cirkd_ray.types import SegmentationOutput

IMAGES = 2
"""BatchNorm of globally pooled maps needs two in training."""
LARGE = 512
"""Height and width that are enough for every network and loss."""


def rehearse(
    spec: RunSpec,
    student: SegmentationModel,
    teacher: SegmentationModel | None = None,
    losses: Mapping[str, DistillationLoss] | None = None,
) -> list[str]:
    """Let the student and every loss meet maps of the sizes that the crop gives, without computing any.

    All tensors are on torch's `meta` device: they have a shape and a type, but no values, so that a large
    network takes no longer than a small one. Modules may be on any device and keep their values; student and
    losses are put in training mode. The teacher's maps are made from what it declares: they are resized to
    the student's anyway, and a network from elsewhere may do anything in its forward.

    Returns:
        What cannot be known without values, a sentence each.

    Raises:
        UserError: what a loss finds wrong with its settings, given the maps, or a crop that is too small.
    """
    assert spec.data.crop is not None
    crop, notes = spec.data.crop, list[str]()
    images = min(IMAGES, smallest_share(spec))

    def seen(size: tuple[int, int], count: int = images) -> SegmentationOutput:
        found: SegmentationOutput = _shapes(student.train(), torch.zeros(count, 3, *size))
        return found

    def inputs(size: tuple[int, int], count: int = images) -> LossInputs:
        assert teacher is not None
        labels = torch.zeros(count, *size, dtype=torch.int64)
        return LossInputs(seen(size, count), declared_output(teacher, *size, count), labels)

    with torch.no_grad(), torch.device("meta"):
        try:
            seen(crop)
        except Exception as error:  # of torch, where an operator has no such form, or of timm
            _refuse_small(spec, student.name, error, images, seen)
            return [unknown(f"model: {student.name} on {crop[0]} x {crop[1]} pixels", error)]
        for name, loss in (losses or {}).items():
            try:
                _shapes(loss.train(), inputs(crop))
            except UserError as error:
                raise type(error)(f"distill.losses.{name}: {error}") from None
            except Exception as error:  # of anybody's code
                where = f"distill.losses.{name}"
                _refuse_small(spec, where, error, images, lambda *a, m=loss: _shapes(m, inputs(*a)))
                notes.append(unknown(where, error))
    return notes


def try_crop(teacher: SegmentationModel, crop: tuple[int, int]) -> None:
    """One forward of a network from elsewhere at the crop: its maps may be of some sizes alone.

    Without values where it has such a form.

    Raises:
        UserError: what is wrong with its maps, or what its own code raises.
    """
    with torch.no_grad():
        try:
            with torch.device("meta"):
                _shapes(teacher, torch.zeros(1, 3, *crop))
        except UserError:
            raise
        except Exception:  # of anybody's code, which may look at values
            shown, place = " x ".join(map(str, crop)), next(teacher.parameters(), torch.zeros(()))
            with failing_as(f"{teacher.name}: a {shown} image"):
                teacher(torch.rand(1, 3, *crop, device=place.device, dtype=place.dtype))


def _refuse_small(
    spec: RunSpec, what: str, error: Exception, images: int, run: Callable[[tuple[int, int], int], Any]
) -> None:
    """Say that the crop, or the batch, is too small where a larger one gets over the error.

    Raises:
        ConfigError: it does.
    """
    assert spec.data.crop is not None
    height, width = spec.data.crop
    enough = (max(LARGE, height), max(LARGE, width))
    ways = (("data.crop", enough, images), ("train.batch_size", (height, width), IMAGES))
    for setting, size, count in ways:
        try:
            run(size, count)
        except Exception:  # the same error, or another
            continue
        few = f"{height} x {width} pixels, {images} images at a time, are too few for {what}"
        raise ConfigError(f"{setting}: {few} ({first_line(error)}); make it larger") from None


@contextlib.contextmanager
def enough_values(spec: RunSpec, images: int) -> Iterator[None]:
    """Tell of a map that is too small for BatchNorm by the settings that make it so.

    Raises:
        ConfigError: BatchNorm sees one value a channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = spec.data.crop or (0, 0)
        raise ConfigError(
            f"data.crop: {height} x {width} pixels, {images} images a worker at a time, leave BatchNorm one "
            "value a channel;\ntake a larger crop, or a larger train.batch_size"
        ) from None


def unknown(what: str, error: Exception) -> str:
    """The note on what failed for want of values."""
    reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:160]
    return f"{what}: cannot be checked without values ({reason}); the first step will show"


def _shapes(module: nn.Module, argument: Any) -> Any:
    """What the module returns, with parameters and buffers that have shapes alone in place of its own."""
    held = (*module.named_parameters(), *module.named_buffers())
    return functional_call(module, {name: torch.empty_like(t, device="meta") for name, t in held}, argument)


def declared_output(
    model: SegmentationModel, height: int, width: int, images: int = IMAGES
) -> SegmentationOutput:
    """Empty maps of the channels and strides that a network declares, for images of that size."""

    def empty(name: str, channels: int) -> Tensor:
        stride = model.strides[name]
        return torch.zeros(images, channels, cells(height, stride), cells(width, stride))

    return SegmentationOutput(
        logits=empty("logits" if model.num_classes else "feature", model.num_classes),
        aux=empty("aux", model.num_classes) if "aux" in model.strides else None,
        feature=empty("feature", model.channels["feature"]),
        stages={name: empty(name, model.channels[name]) for name in model.taps} or None,
    )
