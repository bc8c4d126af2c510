"""Where the tensors lie in a file, and what is said of everything beside them."""

from __future__ import annotations

import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.errors import WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.weights.files import read_state, tensors_of
from cirkd_ray.weights.loading import aside, load_weights
from tests.errors import refuses

WEIGHT, BIAS = torch.ones(2), torch.zeros(2)
INNER = {"conv.weight": WEIGHT, "conv.bias": BIAS}


@pytest.mark.parametrize(
    "loaded",
    [
        INNER,
        {"state_dict": INNER, "epoch": torch.tensor(3)},
        {"epoch": torch.tensor(3), "model": {"state_dict": INNER, "step": torch.tensor(5)}},
        {"state_dict": {"lr": 0.1}, "model": INNER},
        {"optimizer": {"state": {0: WEIGHT}}, "net": INNER},
    ],
)
def test_a_nested_state_dict_goes_before_counters_beside_it(loaded):
    assert tensors_of(loaded, "file") == (INNER, ())


@pytest.mark.parametrize(
    "loaded", [[WEIGHT], {"a": {"b": WEIGHT}}, {"model": {"net": {"weights": INNER}}}, {}]
)
def test_too_deep_or_elsewhere_is_not_found(loaded):
    with refuses("file", WeightsError, "tensors"):
        tensors_of(loaded, "file")


def test_entries_that_are_no_tensors_are_told(tmp_path, capsys):
    model = build_model("fcn:test_resnet", num_classes=2, head_channels=8)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "mixed.pth"
    torch.save({"state_dict": {**state, "epoch": 3, "names": ["a"]}, "step": torch.tensor(1)}, path)
    assert read_state(path)[1] == ("epoch", "names")
    report = load_weights(build_model("fcn:test_resnet", num_classes=2, head_channels=8), path)
    assert (report.others, report.unexpected) == (("epoch", "names"), ())
    assert ("no tensors", "2 entries are no tensors and are left out, e.g. epoch") in aside(report)
    for words in (["inspect"], ["verify", "--model", "fcn:test_resnet", "--set", "head_channels=8"]):
        assert main(["weights", words[0], str(path), *words[1:]]) == 0
        assert "no tensors" in capsys.readouterr().out


def test_an_entry_of_the_network_that_is_no_tensor_is_missing():
    model = build_model("fcn:test_resnet", num_classes=2, head_channels=8)
    state = {**model.state_dict(), "head.classifier.bias": [0.0, 0.0]}
    with refuses("a state dict", WeightsError, "1 missing: head.classifier.bias", lines=5):
        load_weights(model, state)


@pytest.mark.parametrize("content", [b"", b"hello world", b"junk", b"e", b"\x80\x02"])
def test_what_the_unpickler_stumbles_over_is_not_told(content, tmp_path):
    """An exception's name, or a number alone, says nothing of the file."""
    (tmp_path / "junk.pth").write_bytes(content)
    with refuses(tmp_path / "junk.pth", WeightsError) as error:
        read_state(tmp_path / "junk.pth")
    assert str(error.value).endswith("PyTorch file")
