"""Single images with what networks make of them, to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.evaluate.inference import ONE_VIEW, Views, inference
from cirkd_ray.evaluate.scores import label_map
from cirkd_ray.types import Preprocessing

UInt8 = NDArray[np.uint8]


class Picture(NamedTuple):
    """One image with what the networks made of it: uint8 arrays; label maps are H x W, 255 where ignored."""

    name: str
    image: UInt8
    truth: UInt8
    student: UInt8
    teacher: UInt8 | None = None


def take_pictures(
    dataset: SegmentationDataset,
    indices: Sequence[int],
    model: nn.Module,
    preprocessing: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    precision: str | None = None,
    views: Views = ONE_VIEW,
    teacher: nn.Module | None = None,
) -> tuple[Picture, ...]:
    """The images of these indices, those below the set's length, with the predictions of the model.

    A teacher predicts them as well; it sees the whole image once. For the other arguments see `evaluate`.
    """
    pictures = []
    with inference(model, teacher, device=device, precision=precision):
        for sample in (dataset.load(index) for index in indices if 0 <= index < len(dataset)):
            about = (sample.size, sample.name)
            shown = [label_map(model, preprocessing, sample.image, device, views, *about)]
            if teacher is not None:
                shown.append(
                    label_map(teacher, preprocessing_of(teacher), sample.image, device, ONE_VIEW, *about)
                )
            pictures.append(Picture(sample.name, sample.image, sample.label, *shown))
    return tuple(pictures)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The network's own attribute of that name.

    Raises:
        ValueError: it has none.
    """
    found = getattr(model, "preprocessing", None)
    if not isinstance(found, Preprocessing):
        raise ValueError(f"{type(model).__name__} has no `preprocessing`; pass it as an argument")
    return found
