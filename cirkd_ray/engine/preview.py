"""Single images with what networks make of them, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cirkd_ray.data.base import Sample, SegmentationDataset
from cirkd_ray.engine.inference import Views, inference, predict_logits, predicted_classes
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
    model: nn.Module,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    *,
    device: torch.device | str,
    preprocessing: Preprocessing | None = None,
    teacher: nn.Module | None = None,
    precision: str | None = None,
    views: Views | None = None,
) -> tuple[Picture, ...]:
    """The images of these indices (those below the set's length) with what the networks make of them.

    The arguments are those of `evaluate`; `views` are the model's, the teacher sees the whole image once.
    """
    device = torch.device(device)
    networks = [(model, preprocessing or preprocessing_of(model), views or Views())]
    if teacher is not None:
        networks.append((teacher, preprocessing_of(teacher), Views()))

    def predict(sample: Sample) -> list[UInt8]:
        image = torch.from_numpy(sample.image).to(device).permute(2, 0, 1)[None]
        scores = [
            predict_logits(network, pixels, image, size=sample.size, **vars(seen))
            for network, pixels, seen in networks
        ]
        return [predicted_classes(score)[0].to(torch.uint8).cpu().numpy() for score in scores]

    with inference(model, teacher, device=device, precision=precision):
        samples = (dataset.load(index) for index in indices if 0 <= index < len(dataset))
        return tuple(Picture(s.name, s.image, s.label, *predict(s)) for s in samples)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The network's own attribute of that name.

    Raises:
        ValueError: it has none.
    """
    found = getattr(model, "preprocessing", None)
    if not isinstance(found, Preprocessing):
        raise ValueError(f"{type(model).__name__} has no `preprocessing`; pass it as an argument")
    return found
