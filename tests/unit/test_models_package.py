"""`student.safetensors` and `model.json`: what is written is what is read, and damage is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirkd_ray import files
from cirkd_ray.errors import WeightsError
from cirkd_ray.models import build_model
from cirkd_ray.types import CAFFE, ClassSet, Preprocessing
from cirkd_ray.weights import load_model, save_model
from cirkd_ray.weights.card import find_card, find_preprocessing
from tests.errors import refuses

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


def test_half_precision_is_half_the_size_and_read_as_float32(saved, tmp_path):
    save_model(small(), tmp_path / "half", CLASSES, half=True)
    sizes = [(folder / "student.safetensors").stat().st_size for folder in (saved, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    expected, found = small().state_dict(), load_model(tmp_path / "half").model.state_dict()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def test_weights_that_come_with_the_package_are_named_by_it():
    found = find_card("package://quickstart/teacher")
    assert found is not None
    assert found["recipe"] == "quickstart/teacher"
    assert load_model("package://quickstart/teacher").info == found
    with pytest.raises(WeightsError, match=r"recipes.quickstart.tacher: nothing there"):
        load_model("package://quickstart/tacher")


def test_channels_last_weights_are_saved_in_plain_order(tmp_path):
    save_model(small().to(memory_format=torch.channels_last), tmp_path, CLASSES)
    expected = small().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in load_file(tmp_path / "student.safetensors").items())


def test_failed_write_leaves_the_earlier_files(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", full_disk)
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


CARD, WEIGHTS = "model.json", "student.safetensors"


@pytest.mark.parametrize(
    ("damage", "file", "facts"),
    [
        (lambda f: (f / "student.safetensors").unlink(), WEIGHTS, ["validates"]),
        (
            lambda f: (f / "student.safetensors").write_bytes(b"\x10" * 40),
            WEIGHTS,
            ["truncated", "safetensors"],
        ),
        (
            lambda f: (f / "student.safetensors").write_bytes((f / "student.safetensors").read_bytes()[:-9]),
            WEIGHTS,
            ["truncated"],
        ),
        (lambda f: (f / "model.json").write_text('{"format": 1, "na'), CARD, ["truncated", "JSON"]),
        (lambda f: (f / "model.json").write_text("[]"), CARD, ["model card"]),
        (lambda f: _edit(f / "model.json", format=9), CARD, ["9", "1"]),
        (lambda f: _edit(f / "model.json", name="pspnet:none"), CARD, ["backbone", "'none'"]),
        (lambda f: _edit(f / "model.json", name="deeplabv3:test_resnet"), CARD, ["build"]),
        (lambda f: _edit(f / "model.json", classes=["a"]), CARD, ["entry"]),
        (lambda f: _edit(f / "model.json", name=None), CARD, ["model card"]),
        (lambda f: _edit(f / "model.json", preprocessing={"mean": []}), CARD, ["entry", "'scale'"]),
        (lambda f: _edit(f / "model.json", num_classes=4), CARD, ["3 class", "num_classes 4"]),
        (lambda f: _edit(f / "model.json", name="pspnet:resnet10t"), WEIGHTS, ["pspnet:resnet10t"]),
    ],
)
def test_damage_is_named(saved, damage, file, facts):
    damage(saved)
    with refuses(saved / file, WeightsError, *facts, lines=5):
        load_model(saved)


def test_nothing_there(tmp_path):
    with refuses(tmp_path / "absent", WeightsError, "student.safetensors"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": "BGR"}, "channels are 'rgb' or 'bgr', not 'BGR'"),
        ({"channels": ["bgr"]}, "channels are 'rgb' or 'bgr'"),
        ({"mean": [0.5]}, "three finite values"),
        ({"mean": [0.5, 0.5, float("nan")]}, "three finite values"),
        ({"mean": None}, "not iterable"),
        ({"std": [1, 1, 0]}, "above zero"),
        ({"scale": "wide"}, "could not convert"),
    ],
)
def test_a_preprocessing_that_means_nothing_is_refused(saved, change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict({**CAFFE.to_dict(), **change})
    _edit(saved / "model.json", preprocessing={**CAFFE.to_dict(), **change})
    with refuses(saved / "model.json", WeightsError, message):
        find_preprocessing(saved)
    with refuses(saved / "model.json", WeightsError, message):
        load_model(saved)


def test_a_missing_preprocessing_is_named(saved):
    card = json.loads((saved / "model.json").read_text())
    del card["preprocessing"]
    (saved / "model.json").write_text(json.dumps(card))
    with refuses(saved / "model.json", WeightsError, "preprocessing", "'scale'"):
        find_preprocessing(saved)


@pytest.mark.parametrize("text", ["imagenet", "[1]", '{"mean": [0, 0, 0]}'])
def test_a_preprocessing_of_others_in_the_metadata_is_told_with_the_file(tmp_path, text):
    save_file({"x": torch.zeros(1)}, tmp_path / "f.safetensors", metadata={"preprocessing": text})
    with refuses(tmp_path / "f.safetensors", WeightsError, "preprocessing"):
        find_preprocessing(tmp_path / "f.safetensors")


@pytest.mark.parametrize("text", ["resnet18", "3", '{"format": "pt"}'])
def test_a_model_of_others_in_the_metadata_is_no_card(tmp_path, text):
    path = tmp_path / "foreign.safetensors"
    save_file(small().state_dict(), path, metadata={"model": text})
    assert find_card(path) is None
    assert find_preprocessing(path) is None
    with refuses(path, WeightsError, "model.json"):
        load_model(path)


def test_a_spoilt_card_inside_the_weights_is_not_blamed_on_a_file_that_is_not_there(saved):
    path = saved / "alone.safetensors"
    card = json.dumps({"format": 1, "name": "pspnet:none", "settings": {}, "num_classes": 3})
    save_file(small().state_dict(), path, metadata={"model": card})
    with refuses(path, WeightsError, "'none'"):
        load_model(path)
