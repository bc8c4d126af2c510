"""The networks against the CIRKD release: names, shapes, parameter counts, outputs, and both conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cirkd_ray.models import build_model
from cirkd_ray.models.build import model_names
from cirkd_ray.types import CAFFE
from cirkd_ray.weights.loading import convert_reference, load_weights, to_reference
from tests.golden import networks
from tests.golden.fill import fill
from tests.paths import golden

TOLERANCE = 1e-4
HEAVY = ("resnet50", "resnet101", "b1", "b2", "b3", "b4", "mobilenetv3_large")


def _checked() -> list[object]:
    """Every golden network; the default run leaves the large ones to `-m slow`."""
    return [
        pytest.param(name, marks=pytest.mark.slow if any(part in name for part in HEAVY) else ())
        for name in networks.NETWORKS
        if name in model_names()
    ]


def test_every_golden_network_has_a_name():
    assert set(networks.NETWORKS) <= set(model_names())


@pytest.mark.parametrize("name", _checked())
def test_network_equals_the_reference(name: str):
    expected = networks.load(name)
    published = {key: fill(key, shape) for key, shape in expected.state.items()}
    model = build_model(name, num_classes=19).eval()
    assert sum(p.numel() for p in model.parameters()) == expected.parameters

    report = load_weights(model, published)
    assert report.kind == "reference"
    assert model.preprocessing == CAFFE

    with torch.inference_mode():
        output = model(torch.from_numpy(expected.images))
    assert (output.aux is None) == ("aux" not in expected.outputs)
    for key, (shape, largest, values) in expected.outputs.items():
        found = output.tap(key).numpy()
        assert found.shape == shape
        np.testing.assert_allclose(networks.sample(found), values, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize("name", _checked())
def test_conversion_round_trips(name: str):
    shapes = networks.load(name).state
    generator = torch.Generator().manual_seed(0)
    published = {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}
    wrapped = {f"module.{key}": value for key, value in published.items()}

    converted = convert_reference(wrapped, name)
    with torch.device("meta"):
        own = build_model(name, num_classes=19).state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items()}

    back = to_reference(converted, name)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], value) for key, value in published.items())


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "family"), [("models", networks.OURS), ("models_v2", networks.OURS_V2)])
def test_small_copy_agrees_with_the_full_files(stem: str, family: dict[str, str]):
    with np.load(golden(f"{stem}.npz")) as file:
        for theirs, ours in family.items():
            small = networks.load(ours)
            assert np.array_equal(small.images, file[f"{theirs}/input"])
            for key, (shape, _, values) in small.outputs.items():
                full = file[f"{theirs}/{key}"]
                assert full.shape == shape
                assert np.array_equal(networks.sample(full), values)
