"""Which network a file's weights fit, and that network with them: what `cirkd weights` tells and does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.config.composition import overrides_from
from cirkd_ray.data import DATASETS
from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.models.build import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import ClassSet
from cirkd_ray.weights.card import find_card
from cirkd_ray.weights.inspection import Inspection
from cirkd_ray.weights.loading import WeightsReport, aside, compare, explain, load_weights
from cirkd_ray.weights.package import numbered_classes

KINDS = {
    "cirkd_ray": "a network of this package",
    "cirkd_ray backbone": "an encoder of this package",
    "reference": "a network of the CIRKD release",
    "reference backbone": "an ImageNet backbone of the CIRKD release",
    "timm backbone": "an ImageNet backbone of timm (or of torchvision, whose ResNets have the same names)",
    "torchvision backbone": "an ImageNet backbone of torchvision",
    "torchvision segmentation": "a segmentation network of torchvision: a teacher by "
    "module=cirkd_ray.weights.external:torchvision_model?name=NAME&weights=PATH",
    "unknown": "unknown; name a network with --model to see what does not fit",
}


def describe_fit(
    found: Inspection, path: str, wanted: str | None, overrides: Sequence[str]
) -> list[tuple[str, str]]:
    """Rows of the network and of what does not fit it."""
    own = found.kind == "cirkd_ray" and find_card(found.path) is not None
    if wanted is not None or overrides or own:
        name = wanted or (found.best.name if found.best is not None else None)
        model = network_for(found, name, overrides)
        report, _ = compare(model, path)
        problems = explain(report)
        return [
            ("network", f"{model.name}: {problems.strip() or f'fits ({report.loaded} entries)'}"),
            *aside(report),
        ]
    if found.best is None:
        ours = found.kind.startswith("cirkd_ray")
        return [("network", "none of the published ones; name it with --model NAME")] if ours else []
    name = found.best.name
    what = f"the encoder of {name}" if found.kind.endswith("backbone") else name
    if not found.best.problems:
        step = ("next", f"cirkd weights import {path} --model {name}")
        if found.kind == "cirkd_ray backbone":
            step = ("use it with", f"--set model.weights={found.path}")
        return [("network", f"{what}: fits"), *([] if found.damaged else [step])]
    lists = {k: getattr(found.best, k) for k in ("missing", "unexpected", "mismatched")}
    rows = [(k, f"{len(v)}: {first_names(v)}") for k, v in lists.items() if v]
    return [("network", f"nearest is {what}, which it does not fit"), *rows]


def first_names(names: Sequence[str], count: int = 5) -> str:
    """The first few of some names."""
    return ", ".join([*names[:count], *(["..."] if len(names) > count else [])])


def network_for(found: Inspection, name: str | None, overrides: Sequence[str]) -> SegmentationModel:
    """The network of that name, or the one that fits the file."""
    if name is None:
        if found.kind == "torchvision segmentation":
            raise WeightsError(_foreign(found))
        if found.best is None or found.best.problems:
            what = "holds an encoder and does" if found.kind.endswith("backbone") else "does"
            raise WeightsError(f"{found.path}: {what} not say which network it is; name it with --model NAME")
        name = found.best.name
    card = find_card(found.path)
    settings: dict[str, Any] = dict(card["settings"]) if card and card["name"] == name else {}
    if not card and found.best is not None and found.best.name == name:
        settings = dict(found.best.settings)
    settings |= overrides_from(overrides)
    return build_model(name, num_classes=found.num_classes or 2, where=name, **settings)


def _foreign(found: Inspection) -> str:
    """Why a segmentation network of torchvision is not loaded, and how it is used."""
    use = KINDS[found.kind].replace("PATH", str(found.path))
    return f"{found.path}: cannot be read as a network of this package; it is {use}"


def load_into(model: SegmentationModel, path: str, found: Inspection) -> WeightsReport:
    """Load them; where they do not fit, the error says what they are, as far as that is known."""
    try:
        return load_weights(model, path)
    except WeightsError as error:
        best = found.best
        if found.kind == "torchvision segmentation" and not found.damaged:
            raise WeightsError(_foreign(found)) from None
        if found.damaged or best is None or best.problems or best.name == model.name:
            raise
        what = f"the encoder of {best.name}" if found.kind.endswith("backbone") else best.name
        raise WeightsError(f"{error}\nit fits {what}; see `cirkd weights inspect {path}`") from None


def classes_for(data: str | None, count: int) -> ClassSet:
    """Names and colours from a data set, or numbers and the colours of VOC.

    Raises:
        ConfigError: there is no such data set, or it has no classes of its own, or another number of them.
    """
    if data is None:
        return numbered_classes(count)
    classes = getattr(DATASETS.get(data, "--data"), "classes", None)
    if not isinstance(classes, ClassSet):
        raise ConfigError(f"--data {data}: has no classes of its own; leave --data out to number them")
    if len(classes) != count:
        raise ConfigError(f"--data {data}: {len(classes)} classes, but these weights score {count}")
    return classes


def try_on_noise(model: SegmentationModel, size: tuple[int, int], path: Path) -> str:
    """Run the network once on noise; says what came out.

    Raises:
        WeightsError: scores are not finite.
    """
    images = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        start = time.perf_counter()
        logits = model.eval()(model.preprocessing(images)).logits
        seconds = time.perf_counter() - start
    if not logits.isfinite().all():
        raise WeightsError(f"{path}: {model.name} gives scores that are not finite")
    predicted = logits.argmax(1).unique().numel()
    return (
        f"{model.name}: {size[0]} x {size[1]} -> {' x '.join(map(str, logits.shape[1:]))} scores from "
        f"{logits.min():.3g} to {logits.max():.3g} in {seconds:.2f} s; "
        f"{predicted} of {model.num_classes} classes predicted on noise"
    )
