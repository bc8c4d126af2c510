"""A step's shapes before there is a step: the student and the losses on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import UserError
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.losses.symmetric import in_one_piece
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
) -> None:
    """Let every loss meet maps of the sizes that the recipe's crop gives, without computing any.

    The tensors are torch's fakes: they have a shape, a type and a device, but no values, so that a large
    network takes no longer than a small one. The teacher's maps are made from what it declares, since they
    are resized to the student's anyway and a network from elsewhere may do anything in its forward. Weights,
    statistics and queues keep their values, but modes and BatchNorm's counts do not: student and losses are
    to be thrown away.

    What cannot run without values is passed over: then the first step is the first to know.

    Raises:
        UserError: what a loss finds wrong with its settings, given the maps.
    """
    if spec.data.crop is None:
        return
    height, width = spec.data.crop
    try:
        from torch._subclasses import FakeTensorMode  # no public name; it may move

        with torch.no_grad(), in_one_piece(), FakeTensorMode(allow_non_fake_inputs=True):
            seen = student.train()(torch.zeros(IMAGES, 3, height, width))
            labels = torch.zeros(IMAGES, height, width, dtype=torch.int64)
            inputs = LossInputs(seen, declared_output(teacher, height, width), labels)
            for loss in losses.values():
                loss.train().forward(inputs)  # not called: the check of the labels' values would look at them
    except UserError:
        raise
    except Exception:  # of torch, where it has no fake of an operator, or of anybody's code
        return


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
