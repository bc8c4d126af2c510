"""Memory of images times classes: labels from a few classes at a time are the same to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate import scores
from cirkd_ray.evaluate.evaluation import evaluate
from cirkd_ray.evaluate.inference import SlidingWindow, Views
from cirkd_ray.evaluate.scores import PixelScores, predict_logits, predicted_classes
from cirkd_ray.types import IMAGENET, SegmentationOutput
from tests.errors import refuses
from tests.tiny import RandomSet, TinyNet

CLASSES = 19  # in parts of 8 the last one has too few and goes with the one before
WAYS = {
    "whole": Views(),
    "scales and flip": Views((0.5, 1.0, 1.5), flip=True),
    "windows": Views(window=SlidingWindow((32, 40), batch=3)),
    "all": Views((1.0, 1.25), flip=True, window=SlidingWindow((32, 32), (20, 32))),
    "probabilities": Views((0.5, 1.0), flip=True, average="probabilities"),
}


class Net(nn.Module):
    """Random scores at an eighth of the size, in either memory format."""

    def __init__(self, classes: int, align_corners: bool = True, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.align_corners, self.preprocessing = align_corners, IMAGENET
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.score = nn.Conv2d(3, classes, 3, stride=8, padding=1)

    def forward(self, images: Tensor) -> SegmentationOutput:
        logits = self.score(images).contiguous(memory_format=self.format)
        return SegmentationOutput(logits, None, logits)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operator makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(item, Tensor) and item.is_contiguous():
                self.bytes = max(self.bytes, item.numel() * item.element_size())
        return made


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_labels_from_a_few_classes_at_a_time_are_those_of_whole_scores(
    monkeypatch: pytest.MonkeyPatch, way: str, align_corners: bool, channels_last: bool
) -> None:
    net, images = Net(CLASSES, align_corners, channels_last), pictures(60, 83)
    whole = predict_logits(net, IMAGENET, images, WAYS[way], size=(61, 80))
    monkeypatch.setattr(scores, "AT_ONCE", 4 * 2 * 61 * 80 * 11)
    made = PixelScores(net, IMAGENET, images, WAYS[way], size=(61, 80))
    parts = list(made._parts())
    assert parts == [(0, 8), (8, 19)]
    for first, end in parts:
        if way == "probabilities":
            torch.testing.assert_close(made.of(first, end), whole[:, first:end])
        else:
            assert torch.equal(made.of(first, end), whole[:, first:end])
    assert torch.equal(made.labels(), predicted_classes(whole))


def test_memory_does_not_grow_with_the_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture with 64 times the pixels of its logits, no tensor is larger than a part allows."""
    monkeypatch.setattr(scores, "AT_ONCE", 1)  # as few classes as there may be

    images = pictures(160, 240, count=1)
    for views in WAYS.values():
        sizes = []
        for classes in (20, 150):
            net = Net(classes)
            with torch.inference_mode(), Largest() as largest:
                PixelScores(net, IMAGENET, images, views).labels()
            sizes.append(largest.bytes)
        assert sizes[0] == sizes[1], views
        assert sizes[1] < 4 * 150 * 160 * 240 / 8


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_image_the_bytes_and_the_window(error: Exception) -> None:
    class Hungry(TinyNet):
        def forward(self, images: Tensor) -> SegmentationOutput:
            raise error

    data = RandomSet(count=1)
    with refuses(data.name(0), ConfigError) as caught:
        evaluate(Hungry(), data, device="cpu")
    assert "--window" in str(caught.value)
    assert "train.validate_window, from its start and under another --name" in str(caught.value)
    assert ("9 bytes" in str(caught.value)) == (type(error) is RuntimeError)


def test_other_errors_of_a_network_stay_what_they_are() -> None:
    class Wrong(TinyNet):
        def forward(self, images: Tensor) -> SegmentationOutput:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        evaluate(Wrong(), RandomSet(count=1), device="cpu")


def test_whole_scores_are_refused_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "available_bytes", lambda device: 100_000)
    with torch.inference_mode(), refuses("images", ConfigError) as caught:
        predict_logits(Net(CLASSES), IMAGENET, pictures(64, 96))
    assert str(4 * 2 * CLASSES * 64 * 96) in str(caught.value)
    with torch.inference_mode():
        assert PixelScores(Net(CLASSES), IMAGENET, pictures(64, 96)).labels().shape == (2, 64, 96)
    assert np.prod((2, 64, 96)) < 100_000
