"""What a weights file is: whose names it has, which network fits it, how many classes it scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.models.backbones import BACKBONES
from cirkd_ray.models.build import PUBLISHED, build_model
from cirkd_ray.weights.backbones import ENCODER, match_backbone
from cirkd_ray.weights.card import find_card, locate
from cirkd_ray.weights.files import read_state
from cirkd_ray.weights.loading import CLASSIFIERS, is_reference, layout, not_finite
from cirkd_ray.weights.reference_names import reference_names

_HEAD_SIGNS = {
    "head.aspp.": "deeplabv3",
    "head.psp.": "pspnet",
    "head.ppm_conv.": "upernet",
    "linear_pred.": "segformer",
}

_PLAIN = ("deeplabv3:resnet18", "deeplabv3:resnet50", "deeplabv3:resnet101")
"""Networks that torchvision's ResNets fit, which timm calls alike; the published ones have a deep stem."""


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


def _guess(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, Candidate | None]:
    """Kind and best network."""
    if is_reference(state):  # first: its PSPNet has a `head.classifier` as ours have
        return "reference", _best_reference(state)
    if any(name.startswith((ENCODER, "head.classifier.")) for name in state):
        whole = any(name.startswith("head.") for name in state)
        card = find_card(path)
        best = Candidate(card["name"]) if card else _best_own(state, "" if whole else ENCODER)
        return "cirkd_ray" if whole else "cirkd_ray backbone", best
    if any(name.startswith("classifier.") for name in state) and any(
        n.startswith("backbone.") for n in state
    ):
        return "torchvision segmentation", None
    return _best_backbone(state)


def _best_reference(state: Mapping[str, Tensor]) -> Candidate | None:
    """The published network whose names and shapes agree best."""
    head = next((head for sign, head in _HEAD_SIGNS.items() if any(n.startswith(sign) for n in state)), None)
    names = [name for name, (its_head, _, _) in PUBLISHED.items() if its_head == head]
    candidates = (_compare_reference(state, name) for name in names)
    return min(candidates, key=lambda candidate: candidate.problems, default=None)


def _compare_reference(state: Mapping[str, Tensor], name: str) -> Candidate:
    """Names and shapes against one published network in the release's names."""
    aux = any(entry.startswith("auxlayer.") for entry in state)
    ours = layout(name, aux)
    theirs = reference_names(name, ours)
    shapes = {theirs[entry]: shape for entry, shape in ours.items()}
    classifiers = {theirs[entry] for entry in ours if entry.startswith(CLASSIFIERS)}
    return _compare(state, name, shapes, classifiers, {"aux": aux})


def _best_own(state: Mapping[str, Tensor], part: str) -> Candidate | None:
    """The published network, or its `part` alone, that our own names and shapes agree with best.

    Encoders may be those of torchvision's ResNets, too.

    None where less than half of the entries agree: then it is a network of another name.
    """
    aux = any(entry.startswith("auxiliary.") for entry in state)
    candidates = []
    for name in (*PUBLISHED, *(_PLAIN if part else ())):
        shapes = {entry: shape for entry, shape in layout(name, aux).items() if entry.startswith(part)}
        classifiers = {entry for entry in shapes if entry.startswith(CLASSIFIERS)}
        candidates.append(_compare(state, name, shapes, classifiers, {} if part else {"aux": aux}))
    best = min(candidates, key=lambda candidate: candidate.problems)
    return best if best.problems <= len(state) // 2 else None


def _compare(
    state: Mapping[str, Tensor],
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    classifiers: set[str],
    settings: dict[str, Any],
) -> Candidate:
    """Names and shapes against those of one network; the classifiers' number of classes is free."""
    mismatched = []
    for entry, value in state.items():
        expected = shapes.get(entry, tuple(value.shape))
        found = tuple(value.shape)
        if entry in classifiers:
            expected, found = expected[1:], found[1:]
        if found + (1, 1) * (len(expected) == 4 and len(found) == 2) != expected:
            mismatched.append(entry)
    counters = "num_batches_tracked"
    missing = tuple(e for e in shapes if e not in state and not e.endswith(counters))
    return Candidate(name, missing, tuple(e for e in state if e not in shapes), tuple(mismatched), settings)


def _best_backbone(state: Mapping[str, Tensor]) -> tuple[str, Candidate | None]:
    """The published encoder, or the ResNet of plain stem, whose names and shapes agree best."""
    best: tuple[str, Candidate | None] = ("unknown", None)
    transformer = any("patch_embed1." in name for name in state)  # large ones take long to build, even empty
    names = {its: name for name, (_, its, _) in reversed(PUBLISHED.items())}
    for name in (*(names[backbone] for backbone in BACKBONES), *_PLAIN):
        if name.startswith("segformer_") != transformer:
            continue
        with torch.device("meta"):
            model = build_model(name, num_classes=1)
        match = match_backbone(state, model)
        if match is None:
            continue
        own = {k: v.shape for k, v in model.state_dict().items() if k.startswith(ENCODER)}
        placed = match.state
        candidate = Candidate(
            name,
            tuple(e for e in own if e not in placed and not e.endswith("num_batches_tracked")),
            tuple(e for e in placed if e not in own),
            tuple(e for e, value in placed.items() if e in own and value.shape != own[e]),
        )
        if best[1] is None or candidate.problems < best[1].problems:
            best = (match.kind, candidate)
    return best


def _num_classes(state: Mapping[str, Tensor], kind: str) -> int | None:
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
