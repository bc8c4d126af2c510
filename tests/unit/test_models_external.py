"""Teachers from elsewhere: torchvision's, and a user's module by import path."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import segmentation

from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.types import CAFFE
from cirkd_ray.weights.external import load_module, torchvision_model
from tests.errors import refuses

USER_MODULE = '''
from torch import nn
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.types import CAFFE

class Net(nn.Module):
    """Returns a tuple, a list inside a dictionary, and class scores at image size."""
    def __init__(self, classes, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.score = nn.Conv2d(width, classes, 1)
        self.unused = nn.Conv2d(1, 1, 1)
    def forward(self, x):
        feature = self.stem(x)
        low = self.score(feature)
        return nn.functional.interpolate(low, x.shape[-2:], mode="bilinear"), {"inner": [feature, low]}

def factory(num_classes, width=8, outputs=None):
    outputs = outputs or {"logits": "1.inner.1", "feature": "@stem", "early": "@score:input"}
    return ExternalModel(Net(num_classes, width), outputs=outputs, preprocessing=CAFFE, name="mine")

def failing(reason, then=1):
    raise FileNotFoundError(reason)

def narrow():
    return ExternalModel(nn.Conv2d(4, 2, 1), outputs={"logits": "", "feature": ""}, name="narrow")

def in_place():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    outputs = {"logits": "", "feature": "@0", "input": "@1:input", "late": "@1", "free": "@2"}
    return ExternalModel(module, outputs=outputs)

def bare():
    return Net(2, 4)

setting = 3
'''


@pytest.fixture(autouse=True)
def user_package(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(USER_MODULE)
    (tmp_path / "my_broken.py").write_text("from torch import Nothing")
    (tmp_path / "my_unclosed.py").write_text("def factory(")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_networks", raising=False)


def test_users_module_is_measured_and_tapped():
    model = load_module("my_networks:factory?width=12", num_classes=5)
    assert (model.name, model.num_classes, model.preprocessing) == ("mine", 5, CAFFE)
    assert model.channels == {"feature": 12, "early": 12}
    assert model.strides == {"logits": 4, "feature": 4, "early": 4}
    assert not model.training
    images = torch.randn(2, 3, 40, 56)
    output = model(images)
    assert output.logits.shape == (2, 5, 10, 14)
    assert output.aux is None
    assert output.stages is None
    torch.testing.assert_close(output.logits, model.module.score(output.feature))
    model.taps = frozenset({"early"})
    assert torch.equal(model(images).tap("early"), output.feature)


def test_gradients_reach_the_image_but_nothing_is_kept_between_calls():
    model = load_module("my_networks:factory", num_classes=2)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(images).logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert model._seen == {}


@pytest.mark.parametrize("inference", [False, True])
def test_maps_are_what_left_the_module_before_a_layer_worked_in_place(inference):
    """Only those that are overwritten are copied."""
    torch.manual_seed(0)
    with torch.inference_mode(inference):
        model = load_module("my_networks:in_place", num_classes=2)
        assert model._overwritten == {"feature", "input"}
        model.taps = frozenset({"input", "late", "free"})
        images = torch.randn(1, 3, 8, 8)
        output = model(images)
        expected = model.module[0](images)
    assert expected.min() < 0
    assert torch.equal(output.feature, expected)
    assert torch.equal(output.tap("input"), expected)
    assert torch.equal(output.tap("late"), expected.relu())


MODULE, NET = "teacher.module", "mine"


@pytest.mark.parametrize(
    ("spec", "subject", "facts"),
    [
        ("my_networks", MODULE, ["'my_networks'", "package.module:factory"]),
        ("no_such_package.x:f", MODULE, ["'no_such_package.x'", "PYTHONPATH"]),
        ("my_networks:factry", MODULE, ["'factry'", "'factory'"]),
        ("my_networks:setting", MODULE, ["'setting'", "known"]),
        ("my_networks:factory?widht=3", MODULE, ["'widht'", "'width'"]),
        ("my_networks:factory?width", MODULE, ["'width'", "NAME=VALUE"]),
        ("my_networks:factory?width=[a", MODULE, ["'width=[a'", "ParserError: while"]),
        ("my_networks:failing", MODULE, ["my_networks:failing: TypeError", "'reason'"]),
        ("my_networks:failing?reason=gone.pth", MODULE, ["my_networks:failing: FileNotFoundError: gone.pth"]),
        ("my_networks:narrow", "narrow", ["128 x 192", "RuntimeError: Given groups=1, weight of"]),
        ("my_broken:factory", MODULE, ["'my_broken': ImportError", "'Nothing'"]),
        ("my_unclosed:factory", MODULE, ["'my_unclosed': SyntaxError"]),
        ("my_networks:bare", MODULE, ["Net", "ExternalModel"]),
        ("my_networks:factory?outputs={logits: '1.inner.1'}", NET, ["'feature'"]),
        ("my_networks:factory?outputs={logits: '1.iner.1', feature: '@stem'}", NET, ["'iner'", "'inner'"]),
        ("my_networks:factory?outputs={logits: '7', feature: '@stem'}", NET, ["tuple", "'7'"]),
        (
            "my_networks:factory?outputs={logits: '1', feature: '@stem'}",
            NET,
            ["outputs.logits", "N x C x h x w", "dict"],
        ),
        ("my_networks:factory?outputs={logits: '@scor', feature: '@stem'}", NET, ["'scor'", "'score'"]),
        (
            "my_networks:factory?outputs={logits: '@score:out', feature: '@stem'}",
            NET,
            ["outputs.logits", "NAME or NAME:input"],
        ),
        (
            "my_networks:factory?outputs={logits: '@unused', feature: '@stem'}",
            NET,
            ["outputs.logits", "'@unused'", "forward"],
        ),
        (
            "my_networks:factory?outputs={logits: '@score', feature: '@stem', aux: '@stem'}",
            NET,
            ["aux", "8 classes"],
        ),
    ],
)
def test_what_is_wrong_is_named(spec, subject, facts):
    with refuses(subject, ConfigError, *facts):
        load_module(spec, num_classes=3)


@pytest.mark.parametrize(
    ("name", "stride"), [("deeplabv3_mobilenet_v3_large", 16), ("lraspp_mobilenet_v3_large", 8)]
)
def test_torchvision_networks_give_their_own_scores(name, stride, tmp_path):
    """Resized to the image, the tapped logits are what torchvision returns."""
    torch.manual_seed(0)
    options = {} if "lraspp" in name else {"aux_loss": True}
    original = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=7, **options
    ).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    spec = f"cirkd_ray.weights.external:torchvision_model?name={name}&weights={tmp_path / 'weights.pth'}"
    model = load_module(spec, num_classes=7)
    assert model.strides["logits"] == stride
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, output = original(images), model(images)
    for mine, theirs in ((output.logits, "out"), (output.aux, "aux")):
        if theirs in expected:
            resized = nn.functional.interpolate(
                mine, (64, 96), mode="bilinear", align_corners=model.align_corners
            )
            torch.testing.assert_close(resized, expected[theirs])
    assert (output.aux is None) == ("lraspp" in name)


def test_torchvision_resnets_have_stages():
    with torch.device("meta"):
        module = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4)
        outputs = {"logits": "@classifier", "feature": "@classifier.4:input", "stage1": "@backbone.layer1"}
        model = ExternalModel(module, outputs=outputs)
    assert model.channels == {"feature": 512, "stage1": 256}
    assert model.strides == {"logits": 8, "feature": 8, "stage1": 4}


def test_torchvision_bad_name_and_weights(tmp_path):
    with refuses("deeplabv3_resnet5", ConfigError, "torchvision", "'deeplabv3_resnet50'"):
        torchvision_model("deeplabv3_resnet5")
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with refuses(tmp_path / "x.pth", WeightsError, "lraspp_mobilenet_v3_large", lines=5):
        torchvision_model("lraspp_mobilenet_v3_large", weights=str(tmp_path / "x.pth"))
