"""What a weights file is: whose names it has, which network fits it, how many classes it scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirkd_ray.models.backbones import BACKBONES
from cirkd_ray.models.build import PUBLISHED
from cirkd_ray.weights.card import find_card, locate
from cirkd_ray.weights.files import StateDict, read_state
from cirkd_ray.weights.loading import (
    has_auxiliary,
    is_own,
    is_reference,
    match,
    not_finite,
    recognise,
    skeleton,
)
from cirkd_ray.weights.reference_names import reference_names

_HEAD_SIGNS = {
    "head.aspp.": "deeplabv3",
    "head.psp.": "pspnet",
    "head.ppm_conv.": "upernet",
    "linear_pred.": "segformer",
}

_PLAIN = (
    *(f"deeplabv3:resnet{depth}" for depth in (18, 50, 101)),
    *(f"deeplabv3:tf_efficientnet_lite{size}" for size in range(5)),
)
"""Networks beside the published ones that a backbone's file is compared with: torchvision's ResNets (the
published ones have a deep stem), and the EfficientNet-Lites that package indexes hold."""


@dataclass(frozen=True)
class Candidate:
    """One network compared with the file.

    Attributes:
        name: the network, as `build_model` knows it; for a backbone file, one network that has this encoder.
        missing, unexpected, mismatched: entries that do not fit, in the file's names; the number of classes
            is free.
        settings: those that the file gives away: whether it has an auxiliary head.
    """

    name: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """Number of entries that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)


@dataclass(frozen=True)
class Inspection:
    """What is known of a weights file.

    Attributes:
        path: the file.
        kind: `cirkd_ray`, `reference`, `... backbone`, `torchvision segmentation` or `unknown`.
        tensors: number of entries.
        parameters: number of values, without statistics of norms.
        num_classes: classes that it scores, where it has a classifier.
        best: the network that fits best, where there is a guess.
        others: entries that are no tensors.
        damaged: entries that hold NaN or infinity.
    """

    path: Path
    kind: str
    tensors: int
    parameters: int
    num_classes: int | None
    best: Candidate | None
    others: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def inspect(path: str | Path) -> Inspection:
    """Look into a weights file; nothing is loaded into a network.

    Raises:
        WeightsError: the file cannot be read.
    """
    file = locate(Path(path))[0]
    state, others = read_state(file)
    kind, best = _guess(state, path)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(value.numel() for name, value in state.items() if not name.endswith(statistics))
    return Inspection(
        file, kind, len(state), parameters, _num_classes(state, kind), best, others, not_finite(state)
    )


def _guess(state: StateDict, path: str | Path) -> tuple[str, Candidate | None]:
    """Kind and best network."""
    parts = {name.partition(".")[0] for name in state}
    if is_reference(state):  # first: its PSPNet has a `head.classifier` as ours have
        signs = [sign for sign in _HEAD_SIGNS if any(name.startswith(sign) for name in state)]
        head = _HEAD_SIGNS[signs[0]] if signs else None
        names = [name for name, (its, _, _) in PUBLISHED.items() if its == head]
        return "reference", _best(state, names)[1]
    if is_own(state):
        whole, card = "head" in parts, find_card(path)
        names = [*PUBLISHED, *([] if whole else _PLAIN)]
        best = Candidate(card["name"]) if card else _best(state, names)[1]
        # Where less than half of the entries agree, it is a network of another name.
        likely = best is not None and best.problems <= len(state) // 2
        return "cirkd_ray" if whole else "cirkd_ray backbone", best if likely else None
    if {"classifier", "backbone"} <= parts:
        return "torchvision segmentation", None
    transformer = any("patch_embed1." in name for name in state)  # large ones take long to build, even empty
    first = {its: name for name, (_, its, _) in reversed(PUBLISHED.items())}
    names = [*(first[backbone] for backbone in BACKBONES), *_PLAIN]
    return _best(state, [name for name in names if name.startswith("segformer_") == transformer])


def _best(state: StateDict, names: Iterable[str]) -> tuple[str, Candidate | None]:
    """Kind, and the network of these names whose entries agree best."""
    kind, best = "unknown", None
    for name in names:
        model = skeleton(name, has_auxiliary(state))
        found = recognise(state, model)
        if found is None:
            continue
        report, _ = match(model, found, reinit_classifier=True)
        missing, mismatched = report.missing, tuple(entry for entry, _, _ in report.mismatched)
        if found.kind == "reference":
            theirs = reference_names(name, (*missing, *mismatched))
            missing, mismatched = (tuple(theirs[entry] for entry in part) for part in (missing, mismatched))
        settings = {} if found.kind.endswith("backbone") else {"aux": has_auxiliary(state)}
        candidate = Candidate(name, missing, report.unexpected, mismatched, settings)
        if best is None or candidate.problems < best.problems:
            kind, best = found.kind, candidate
    return kind, best


def _num_classes(state: StateDict, kind: str) -> int | None:
    """Rows of the classifier of a whole network."""
    names = {
        "cirkd_ray": ("head.classifier.weight",),
        "reference": (
            "head.block.4.weight",
            "head.classifier.weight",
            "head.conv_last.1.weight",
            "linear_pred.weight",
        ),
        "torchvision segmentation": ("classifier.4.weight", "classifier.low_classifier.weight"),
    }
    weight = next((state[name] for name in names.get(kind, ()) if name in state), None)
    return None if weight is None else int(weight.shape[0])
