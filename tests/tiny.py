"""The smallest network and data set that evaluation, prediction and reports can be tried on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cirkd_ray.data.base import Sample, SegmentationDataset
from cirkd_ray.types import IMAGENET, ClassSet, SegmentationOutput

CLASSES = ClassSet(
    ("sky", "road", "car", "person"), ((70, 130, 180), (128, 64, 128), (0, 0, 142), (220, 20, 60))
)


class TinyNet(nn.Module):
    """Two convolutions of stride 2 and a classifier, with random but fixed weights."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
            )
            self.classifier = nn.Conv2d(8, classes, 1)
            with torch.no_grad():  # centre the scores, so that every class wins somewhere
                noise = IMAGENET(torch.randint(0, 256, (4, 3, 32, 32)))
                self.classifier.bias -= self.classifier(self.body.eval()(noise)).mean((0, 2, 3))
            self.train()
        self.preprocessing = IMAGENET
        self.align_corners = True

    def forward(self, images: torch.Tensor) -> SegmentationOutput:
        feature = self.body(images)
        return SegmentationOutput(self.classifier(feature), None, feature)


class RandomSet(SegmentationDataset):
    """Random pixels and labels, some of them ignored; image n is a function of n."""

    classes = CLASSES

    def __init__(self, count: int = 5, sizes=((16, 20),), bad_value: int | None = None) -> None:
        self.count = count
        self.sizes = sizes
        self.bad_value = bad_value

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        height, width = self.sizes[index % len(self.sizes)]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = rng.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), (height, width))
        if self.bad_value is not None:
            label[0, 0] = self.bad_value
        return Sample(image, label, self.name(index))

    def name(self, index: int) -> str:
        return f"random/{index}"
