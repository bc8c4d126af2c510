"""`student.safetensors` and `model.json`: what is written is what is read, and damage is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from cirkd_ray.errors import WeightsError
from cirkd_ray.models import build_model, load_model, package, save_model
from cirkd_ray.types import CAFFE, ClassSet

CLASSES = ClassSet(("road", "car", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def small(seed: int = 0):
    torch.manual_seed(seed)
    model = build_model("pspnet:test_resnet", num_classes=3, head_channels=16, aux=True, output_stride=16)
    model.preprocessing = CAFFE
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    save_model(small(), tmp_path, CLASSES, miou=0.5, step=7)
    return tmp_path


@pytest.mark.parametrize("what", ["", "student.safetensors", "model.json"])
def test_loaded_network_is_the_saved_one(saved, what):
    loaded = load_model(saved / what)
    model, images = small(), torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        expected, found = model(images), loaded.model(images)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.aux, found.aux)
    assert (loaded.model.name, loaded.model.settings) == (model.name, model.settings)
    assert (loaded.preprocessing, loaded.model.preprocessing) == (CAFFE, CAFFE)
    assert loaded.classes == CLASSES
    assert (loaded.info["miou"], loaded.info["step"]) == (0.5, 7)
    assert not loaded.model.training


def test_weights_file_alone_is_enough(saved):
    (saved / "model.json").unlink()
    assert load_model(saved / "student.safetensors").classes == CLASSES


def test_channels_last_weights_are_saved_in_plain_order(tmp_path):
    save_model(small().to(memory_format=torch.channels_last), tmp_path, CLASSES)
    expected = small().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in load_file(tmp_path / "student.safetensors").items())


def test_failed_write_leaves_the_earlier_files(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(small(1), saved, CLASSES)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_classes_must_fit(tmp_path):
    with pytest.raises(ValueError, match="1 classes but the network has 3"):
        save_model(small(), tmp_path, ClassSet(("a",), ((0, 0, 0),)))


def test_extra_entries_may_not_overwrite_the_card(tmp_path):
    with pytest.raises(ValueError, match="writes name itself"):
        save_model(small(), tmp_path, CLASSES, name="mine")


def _edit(card, **changes):
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "student.safetensors").unlink(), "no student.safetensors in"),
        (lambda f: (f / "student.safetensors").write_bytes(b"\x10" * 40), "truncated or not a safetensors"),
        (
            lambda f: (f / "student.safetensors").write_bytes((f / "student.safetensors").read_bytes()[:-9]),
            "truncated",
        ),
        (lambda f: (f / "model.json").write_text('{"format": 1, "na'), "truncated or not JSON"),
        (lambda f: (f / "model.json").write_text("[]"), "not a model card"),
        (lambda f: _edit(f / "model.json", format=9), "format 9"),
        (lambda f: _edit(f / "model.json", name="pspnet:none"), "cannot build: .*no backbone named 'none'"),
        (lambda f: _edit(f / "model.json", name="deeplabv3:test_resnet"), "cannot build"),
        (lambda f: _edit(f / "model.json", classes=["a"]), "lacks or spoils"),
        (lambda f: _edit(f / "model.json", num_classes=4), "3 class names but num_classes 4"),
        (lambda f: _edit(f / "model.json", name="pspnet:resnet10t"), "does not fit pspnet:resnet10t"),
    ],
)
def test_damage_is_named(saved, damage, message):
    damage(saved)
    with pytest.raises(WeightsError, match=message):
        load_model(saved)


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsError, match=r"nothing at .*absent"):
        load_model(tmp_path / "absent")
