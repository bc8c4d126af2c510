"""What a network wants of its pixels belongs to its weights: one decoded batch feeds two that differ."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from cirkd_ray.models import build_model
from cirkd_ray.types import CAFFE, IMAGENET, Preprocessing
from cirkd_ray.weights.loading import load_weights


def batch() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_caffe_and_imagenet_by_hand():
    images = batch()
    red_green_blue = images.numpy().astype(np.float64)
    mean = np.array([104.00698793, 116.66876762, 122.67891434]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(CAFFE(images).numpy(), red_green_blue[:, ::-1] - mean, rtol=0, atol=1e-4)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(
        IMAGENET(images).numpy(), (red_green_blue / 255 - mean) / std, rtol=0, atol=1e-5
    )


def test_the_batch_is_left_as_it_is_and_invented_pixels_are_zero():
    images, padding = batch(), torch.zeros(2, 8, 9, dtype=torch.bool)
    padding[1, 5:] = True
    before = images.clone()
    for preprocessing in (CAFFE, IMAGENET):
        prepared = preprocessing(images, padding)
        assert prepared[1, :, 5:].abs().sum() == 0
        assert torch.equal(prepared[0], preprocessing(images)[0])
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("deeplabv3_resnet18", {}, IMAGENET),
        ("deeplabv3_resnet18", {"preprocessing": "caffe"}, CAFFE),
        ("fcn:test_vit", {}, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
        ("fcn:test_vit", {"preprocessing": "imagenet"}, IMAGENET),
    ],
)
def test_networks_say_what_they_expect(name, settings, expected):
    with torch.device("meta"):
        assert build_model(name, num_classes=2, **settings).preprocessing == expected


def test_round_trip():
    odd = Preprocessing("bgr", 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert Preprocessing.from_dict(odd.to_dict()) == odd


def test_timms_weights_of_a_changed_backbone_bring_timms_preprocessing():
    """The published MobileViT differs from timm's in more than weights, so that nothing else says it."""
    network = build_model("deeplabv3_mobilevit_xxs", num_classes=2)
    report = load_weights(network, timm.create_model("mobilevit_xxs").state_dict())
    assert report.kind == "timm backbone"
    assert network.preprocessing == Preprocessing("rgb", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
