"""Evaluation counts on a device what it counts on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cirkd_ray.evaluate import ConfusionMatrix
from cirkd_ray.evaluate.evaluation import evaluate
from cirkd_ray.evaluate.inference import SlidingWindow, Views
from cirkd_ray.models import build_model
from cirkd_ray.types import Preprocessing, SegmentationOutput
from tests.gpu.subjects import DEVICES, no_waits
from tests.tiny import CLASSES, RandomSet

VIEWS = {
    "whole": Views(),
    "flipped": Views(flip=True),
    "windows": Views(window=SlidingWindow((12, 16), (6, 8))),
}


class Whole(nn.Module):
    """Scores that are whole numbers and eighths: exact in every arithmetic, and never equal."""

    preprocessing = Preprocessing(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    align_corners = True

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, len(CLASSES), 1)
        with torch.no_grad():
            self.classifier.weight.copy_(
                torch.tensor([[4, -2, 0], [-2, 4, -2], [0, -2, 4], [2, 2, -4]]).view(4, 3, 1, 1)
            )
            self.classifier.bias.copy_(torch.arange(4) / 8)

    def forward(self, images: Tensor) -> SegmentationOutput:
        scores = self.classifier(images)
        return SegmentationOutput(scores, None, scores)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seen", VIEWS)
def test_equal_counts(device: str, seen: str) -> None:
    data = RandomSet(6, sizes=((24, 36), (30, 20)))
    expected = evaluate(Whole(), data, device="cpu", views=VIEWS[seen])
    found = evaluate(Whole().to(device), data, device=device, views=VIEWS[seen], batch_size=2, boundary=True)
    assert torch.equal(found.confusion.matrix.cpu(), expected.confusion.matrix)
    assert found.metrics() | expected.metrics() == found.metrics()


@pytest.mark.parametrize("device", DEVICES)
def test_a_real_network_differs_in_hardly_a_pixel(device: str) -> None:
    torch.manual_seed(0)
    model = build_model("deeplabv3:test_resnet", num_classes=len(CLASSES), head_channels=16).eval()
    data = RandomSet(4, sizes=((96, 128),))
    expected = evaluate(model, data, device="cpu").confusion.matrix
    found = evaluate(model.to(device), data, device=device, batch_size=4).confusion.matrix.cpu()
    assert (found - expected).abs().sum() <= 2e-3 * expected.sum()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_counting_does_not_wait(device: str, deterministic: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    prediction = torch.randint(0, 5, (2, 40, 30), generator=generator).to(torch.uint8)
    labels = torch.randint(-1, 5, (2, 40, 30), generator=generator)
    expected = ConfusionMatrix(5)
    expected.update(prediction, labels)
    confusion, there = ConfusionMatrix(5, device=device), (prediction.to(device), labels.to(device))
    confusion.update(*there)
    confusion.reset()
    torch.use_deterministic_algorithms(deterministic)
    with no_waits(device):
        confusion.update(*there)
    assert torch.equal(confusion.matrix.cpu(), expected.matrix)
