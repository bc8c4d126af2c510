"""The one place that opens a trained network: for a teacher, an evaluation, predictions, an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.device import DTYPES, choose_precision
from cirkd_ray.errors import ConfigError
from cirkd_ray.models.build import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import ClassSet
from cirkd_ray.weights.card import CARD_FILE, find_card
from cirkd_ray.weights.external import load_module
from cirkd_ray.weights.loading import load_weights, require_whole
from cirkd_ray.weights.package import LoadedModel, load_model


def open_network(
    path: str | Path | None,
    classes: ClassSet,
    *,
    module: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    where: str = "model",
    called: str | None = None,
) -> LoadedModel:
    """A trained network that scores the classes of a data set.

    Args:
        path: a run's folder, its `model.json` or `student.safetensors`, or with `name` any weights file.
        classes: of the data set.
        module: instead of a path, the user's own `package.module:factory` (see `load_module`).
        name: which network it is. Needed where no `model.json` says so; where one does, it must say the same.
        settings: of that network; None says nothing of them.
        where: the setting that `name` and `settings` come from, for messages.
        called: what messages call the network; by default its path.

    Returns:
        The network in eval mode, on the CPU. Its `classes` are its own where it names them, else those of
        the data set.

    Raises:
        ConfigError: it scores another number of classes, or the same in another order, or `model.json` names
            another network than `name` and `settings` do.
        WeightsError: the weights cannot be read, do not fit, or are those of an encoder alone.
    """
    if module is not None:
        model = load_module(module, num_classes=len(classes))
        loaded = LoadedModel(model, model.preprocessing, classes, {})
    elif path is None:
        raise ValueError("a network is opened from a path or a module")
    elif name is not None and find_card(path) is None:
        model = build_model(name, num_classes=len(classes), where=where, **(settings or {}))
        report = load_weights(model, path, reinit_classifier=True)
        require_whole(report)
        loaded = LoadedModel(model.eval(), model.preprocessing, classes, {}, report=report)
    else:
        loaded = load_model(path)
        if name is not None:
            _require_description(loaded.model, str(path), name, settings, where)
    called = called or str(path or module)
    of_features = module is not None and loaded.model.num_classes == 0  # no classes to compare
    if loaded.model.num_classes != len(classes) and not of_features:
        raise ConfigError(
            f"{called}: scores {loaded.model.num_classes} classes, but the data set has {len(classes)}; "
            "take a network that was trained on the data set's classes"
        )
    return replace(loaded, warnings=compare_classes(called, loaded.classes, classes))


def chosen_precision(setting: str, opened: LoadedModel, device: torch.device) -> str:
    """The precision of a network's arithmetic on a device: "run" is the one that its run validated with.

    A network that does not say has "fp32", and so has one that wants "fp16" on a CPU.

    Raises:
        ConfigError: the device does not have the one that was asked for.
    """
    if setting != "run":
        return choose_precision(setting, device)
    found = str(opened.info.get("precision", "fp32"))
    return "fp32" if found not in DTYPES or (found == "fp16" and device.type != "cuda") else found


def _require_description(
    model: SegmentationModel, path: str, name: str, settings: Mapping[str, Any] | None, where: str
) -> None:
    """Refuse a description of a saved network that its own card contradicts.

    Raises:
        ConfigError: it is another network, or has another setting that changes its scores.
    """
    remedy = f"leave {where} out, {CARD_FILE} says which network it is"
    if name != model.name:
        raise ConfigError(f"{where}: {path} is {model.name}, not {name}; {remedy}")
    if settings is None:
        return
    with torch.device("meta"):  # shapes and settings are enough, without memory or a download
        said = build_model(
            name, num_classes=model.num_classes, where=where, **{**settings, "pretrained": False}
        )
    # Left open and given, these may mean the same.
    same = {
        "output_stride": all(s == model.strides[key] for key, s in said.strides.items() if key != "aux"),
        "head_channels": said.channels["feature"] == model.channels["feature"],
        "preprocessing": said.settings["preprocessing"] == "auto"
        or said.preprocessing == model.preprocessing,
    }
    for key, value in said.settings.items():
        training = key in ("aux", "pretrained") or "drop" in key  # changes no score of a trained network
        if not training and not same.get(key, value == model.settings[key]):
            shown = "its default" if value is None else repr(value)
            raise ConfigError(
                f"{where}.{key}: {path} was trained with {model.settings[key]!r}, not {shown}; {remedy}"
            )


def compare_classes(called: str, own: ClassSet, data: ClassSet) -> tuple[str, ...]:
    """What to warn of where a network names its classes otherwise than the data set; case does not count.

    Args:
        called: what messages call the network.
        own: the classes that it was trained on.
        data: as many of the data set.

    Raises:
        ConfigError: both have the same names in another order, so every score would count for a wrong class.
    """
    pairs = list(zip(own.names, data.names, strict=True))
    differing = [(k, a, b) for k, (a, b) in enumerate(pairs) if a.casefold() != b.casefold()]
    if not differing:
        return ()
    if sorted(a.casefold() for a, _ in pairs) == sorted(b.casefold() for _, b in pairs):
        k, first, second = differing[0]
        raise ConfigError(
            f"{called}: has the data set's classes in another order (class {k} is {first!r}, in the data set "
            f"{second!r});\ntake a network that was trained on them in the data set's order"
        )
    shown = ", ".join(f"{a} / {b}" for _, a, b in differing[:3]) + (", ..." if len(differing) > 3 else "")
    return (f"{called}: class names of the model and of the data set differ: {shown}",)
