"""Single images with what networks make of them, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cirkd_ray.data.base import Sample, SegmentationDataset
from cirkd_ray.evaluate.inference import Views, inference, predict_logits, predicted_classes
from cirkd_ray.types import Preprocessing

UInt8 = NDArray[np.uint8]


class Picture(NamedTuple):
    """One image with what the networks made of it: uint8 arrays; label maps are H x W, 255 where ignored."""

    name: str
    image: UInt8
    truth: UInt8
    student: UInt8
    teacher: UInt8 | None = None


@dataclass(frozen=True)
class Preview:
    """Networks whose predictions are to be looked at.

    Attributes:
        model: the network.
        preprocessing: how it wants its pixels.
        device: where the networks are.
        precision: of both networks; see `inference`.
        views: of the model; the teacher sees the whole image once.
        teacher: another network to look at beside it.
    """

    model: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    precision: str | None = None
    views: Views = field(default_factory=Views)
    teacher: nn.Module | None = None

    def pictures(self, dataset: SegmentationDataset, indices: Sequence[int]) -> tuple[Picture, ...]:
        """The images of these indices, those below the set's length, with their predictions."""
        with inference(self.model, self.teacher, device=self.device, precision=self.precision):
            samples = (dataset.load(index) for index in indices if 0 <= index < len(dataset))
            return tuple(Picture(s.name, s.image, s.label, *self._predict(s)) for s in samples)

    def _predict(self, sample: Sample) -> list[UInt8]:
        """The model's label map, and the teacher's."""
        networks = [(self.model, self.preprocessing, self.views)]
        if self.teacher is not None:
            networks.append((self.teacher, preprocessing_of(self.teacher), Views()))
        image = torch.from_numpy(sample.image).to(self.device).permute(2, 0, 1)[None]
        scores = [
            predict_logits(network, pixels, image, size=sample.size, **vars(seen))
            for network, pixels, seen in networks
        ]
        return [predicted_classes(score)[0].to(torch.uint8).cpu().numpy() for score in scores]


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The network's own attribute of that name.

    Raises:
        ValueError: it has none.
    """
    found = getattr(model, "preprocessing", None)
    if not isinstance(found, Preprocessing):
        raise ValueError(f"{type(model).__name__} has no `preprocessing`; pass it as an argument")
    return found
