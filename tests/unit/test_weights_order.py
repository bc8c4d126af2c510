"""Ports of a network that only call its parts otherwise are known by order and shapes of their entries."""

from __future__ import annotations

import timm
import torch

from cirkd_ray.cli import main
from cirkd_ray.errors import WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.types import Preprocessing
from cirkd_ray.weights.inspection import inspect
from cirkd_ray.weights.loading import load_weights
from tests.errors import refuses

LITE = "tf_efficientnet_lite0"
TO_ONE = Preprocessing("rgb", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def port(whole: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its entries under names that nobody here knows."""
    return {f"_part{number}.value": value for number, value in enumerate(whole.state_dict().values())}


def test_a_port_in_timms_order_computes_what_timm_computes():
    torch.manual_seed(1)
    whole = timm.create_model(LITE).eval()
    network = build_model(f"deeplabv3:{LITE}", num_classes=2, output_stride=32, head_channels=8).eval()
    report = load_weights(network, port(whole))
    assert report.kind == "timm backbone"
    assert network.preprocessing == TO_ONE
    assert report.dropped[-2:] == ("classifier.weight", "classifier.bias")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = whole.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(network.encoder(images)[-1], expected[-1])


def test_an_entry_more_or_another_shape_is_no_port():
    network = build_model(f"deeplabv3:{LITE}", num_classes=2, head_channels=8)
    state = port(timm.create_model(LITE))
    for other in (state | {"more": torch.zeros(1)}, state | {"_part0.value": torch.zeros(32, 3, 5, 5)}):
        with refuses("a state dict", WeightsError, "_part0.value", lines=1):
            load_weights(network, other)


def test_import_finds_the_network_and_keeps_its_normalisation(tmp_path, capsys):
    whole = timm.create_model(LITE)
    torch.save(port(whole), tmp_path / "lite.pth")
    assert inspect(tmp_path / "lite.pth").best.name == f"deeplabv3:{LITE}"
    assert main(["weights", "import", str(tmp_path / "lite.pth"), "--out", str(tmp_path / "out")]) == 0
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in capsys.readouterr().out
    network = build_model(f"fcn:{LITE}", num_classes=2)
    load_weights(network, tmp_path / "out" / "encoder.safetensors")
    assert network.preprocessing == TO_ONE
    assert torch.equal(network.encoder.body.conv_stem.weight, whole.conv_stem.weight)
