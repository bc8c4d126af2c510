"""What `inspect` makes of files of every kind; tensors without memory where names and shapes are enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from cirkd_ray.cli import main
from cirkd_ray.models import build_model
from cirkd_ray.weights import inspection, load_model
from cirkd_ray.weights.loading import to_reference
from tests.golden import networks

LIGHT = [name for name in networks.NETWORKS if not name.startswith("segformer_b") or name == "segformer_b0"]


def inspected(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch) -> inspection.Inspection:
    """`inspect` of a file that holds `state`."""
    path = tmp_path / "file.pth"
    path.touch()
    monkeypatch.setattr(inspection, "read_state", lambda _: (state, ()))
    monkeypatch.setattr(inspection, "not_finite", lambda _: ())  # values are without memory
    return inspection.inspect(path)


@pytest.mark.parametrize("name", LIGHT)
def test_every_official_checkpoint_is_known(name, tmp_path, monkeypatch):
    """PSPNet's classifier is called as ours are."""
    state = {key: torch.empty(shape, device="meta") for key, shape in networks.load(name).state.items()}
    found = inspected(state, tmp_path, monkeypatch)
    assert found.kind == "reference"
    assert (found.best.name, found.best.problems) == (name, 0)
    assert found.num_classes == 19


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (lambda: torchvision.models.resnet18(weights=None), "deeplabv3:resnet18"),
        (lambda: torchvision.models.resnet50(weights=None), "deeplabv3:resnet50"),
        (lambda: timm.create_model("resnet101"), "deeplabv3:resnet101"),
        (lambda: torchvision.models.mobilenet_v2(weights=None), "deeplabv3_mobilenetv2"),
    ],
)
def test_imagenet_backbones_are_of_the_network_that_they_fit(make, fits, tmp_path, monkeypatch):
    with torch.device("meta"):
        found = inspected(make().state_dict(), tmp_path, monkeypatch)
    assert found.kind == f"{'torchvision' if 'mobile' in fits else 'timm'} backbone"
    assert (found.best.name, found.best.problems) == (fits, 0)


@pytest.mark.parametrize("name", ["deeplabv3_resnet18_v2", "pspnet_mobilenetv2", "segformer_b0"])
@pytest.mark.parametrize("part", ["", "encoder."])
def test_our_own_networks_without_a_card_are_known_by_their_entries(name, part, tmp_path, monkeypatch):
    with torch.device("meta"):
        whole = build_model(name, num_classes=5).state_dict()
    state = {key: value for key, value in whole.items() if key.startswith(part)}
    found = inspected(state, tmp_path, monkeypatch)
    assert found.best.problems == 0
    assert found.kind == ("cirkd_ray backbone" if part else "cirkd_ray")
    if not part:
        assert (found.best.name, found.num_classes) == (name, 5)
    first = next(iter(state))
    state["encoder.body.more"] = state.pop(first)
    best = inspected(state, tmp_path, monkeypatch).best
    assert (best.missing, best.unexpected) == ((first,), ("encoder.body.more",))


def test_our_own_encoder_may_be_torchvisions(tmp_path, monkeypatch):
    with torch.device("meta"):
        whole = build_model("pspnet:resnet18", num_classes=5).state_dict()
    state = {key: value for key, value in whole.items() if key.startswith("encoder.")}
    best = inspected(state, tmp_path, monkeypatch).best
    assert (best.name, best.problems) == ("deeplabv3:resnet18", 0)


def test_our_own_network_of_another_name_is_not_guessed(tmp_path, monkeypatch):
    with torch.device("meta"):
        state = build_model("fcn:test_resnet", num_classes=5).state_dict()
    assert inspected(state, tmp_path, monkeypatch).best is None


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("aux", [False, True])
def test_import_needs_no_name_where_the_entries_tell_it(tmp_path, capsys, official, aux):
    """Also without the auxiliary head that the published network has."""
    name = "deeplabv3_resnet18"
    state = build_model(name, num_classes=2, aux=aux).state_dict()
    torch.save(to_reference(state, name) if official else state, tmp_path / "x.pth")
    assert main(["weights", "inspect", str(tmp_path / "x.pth")]) == 0
    assert f"cirkd weights import {tmp_path / 'x.pth'} --model {name}" in capsys.readouterr().out
    assert main(["weights", "import", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 0
    loaded = load_model(tmp_path / "out").model
    assert (loaded.name, loaded.settings["aux"]) == (name, aux)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_only_values_that_are_not_finite_are_damage(tmp_path):
    state = {
        "fc.weight": torch.tensor([1.0, float("nan")]),
        "half": torch.tensor([float("inf")], dtype=torch.float16),
        "sparse": torch.tensor([[0.0, float("inf")]]).to_sparse(),
        "count": torch.tensor(3),
        "flags": torch.tensor([True]),
        "whole": torch.zeros(2),
    }
    torch.save(state, tmp_path / "x.pth")
    assert inspection.inspect(tmp_path / "x.pth").damaged == ("fc.weight", "half", "sparse")
