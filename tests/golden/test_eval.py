"""Evaluation against the CIRKD release: a network with weights by rule, seen whole and in six views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cirkd_ray.evaluate.inference import Views
from cirkd_ray.evaluate.metrics import ConfusionMatrix
from cirkd_ray.evaluate.scores import predict_logits, predicted_classes
from cirkd_ray.models import build_model
from cirkd_ray.types import Preprocessing
from cirkd_ray.weights.loading import load_weights
from tests.golden import networks
from tests.golden.fill import fill
from tests.paths import golden

NAME, CLASSES = "deeplabv3_mobilenetv2", 11
AS_IS = Preprocessing("rgb", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The stored images are what the reference's network saw."""
VIEWS = {"single": Views(), "multiscale_flip": Views((0.75, 1.0, 1.25), flip=True)}


@pytest.fixture(scope="module")
def network():
    shapes = {
        name: tuple(CLASSES if size == 19 else size for size in shape)
        for name, shape in networks.load(NAME).state.items()
    }
    model = build_model(NAME, num_classes=CLASSES).eval()
    load_weights(model, {name: torch.as_tensor(fill(name, shape)) for name, shape in shapes.items()})
    return model


@pytest.mark.parametrize("case", VIEWS)
def test_evaluation_equals_the_reference(network, case):
    with np.load(golden("eval.npz")) as file:
        stored = {key.removeprefix(f"{case}/"): file[key] for key in file.files}
    images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"].astype(np.int64))
    with torch.inference_mode():
        logits = predict_logits(network, AS_IS, images, VIEWS[case])
    expected = stored["mean_logits_sample"]
    np.testing.assert_allclose(
        logits[:, :, ::7, ::5].numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )

    prediction = predicted_classes(logits)
    assert (prediction.numpy() == stored["prediction"]).mean() > 0.999
    confusion = ConfusionMatrix(CLASSES)
    confusion.update(torch.from_numpy(stored["prediction"].astype(np.int64)), labels)
    matrix = confusion.matrix
    assert matrix.diagonal().tolist() == stored["intersection"].tolist()
    assert (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).tolist() == stored["union"].tolist()
    own = ConfusionMatrix(CLASSES)
    own.update(prediction, labels)
    for scores, tolerance in ((confusion, 1e-6), (own, 1e-3)):
        assert scores.miou() == pytest.approx(float(stored["miou"]), rel=tolerance)
        assert scores.pixel_accuracy() == pytest.approx(float(stored["pixel_accuracy"]), rel=tolerance)
