"""Weights of other programs in our networks: names converted, nothing skipped in silence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cirkd_ray.errors import WeightsError
from cirkd_ray.models.build import build_model
from cirkd_ray.models.segmentation import EncoderDecoder, SegmentationModel
from cirkd_ray.types import CAFFE, Preprocessing
from cirkd_ray.weights.backbones import ENCODER, Recognised, match_backbone
from cirkd_ray.weights.card import find_preprocessing, locate
from cirkd_ray.weights.files import StateDict, read_state, strip_prefixes, tensors_of
from cirkd_ray.weights.reference_names import reference_names

CLASSIFIERS = ("head.classifier.", "auxiliary.classifier.")
_REFERENCE_HEADS = ("head.aspp.", "head.psp.", "head.block.", "head.conv_last.", "linear_pred.")


@dataclass(frozen=True)
class WeightsReport:
    """What a load did.

    Attributes:
        source: the file, or "a state dict".
        kind: whose names the weights had: see `Recognised`.
        loaded: number of entries that were copied.
        missing: entries of the network that the weights lack.
        unexpected: entries of the weights that the network has no place for.
        mismatched: (name, shape in the network, shape in the weights).
        reinitialised: classifier entries that kept their fresh values because the number of classes differs.
        fresh: entries of the heads that kept their fresh values because the weights are a backbone's.
        dropped: entries of a classification head, or of an auxiliary head that the network lacks.
        others: entries among the weights that are no tensors.
        preprocessing: what these weights expect, where their kind says so.
    """

    source: str
    kind: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    reinitialised: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


@functools.cache
def skeleton(model_name: str, aux: bool) -> EncoderDecoder:
    """The published network for one class, built without memory."""
    with torch.device("meta"):
        return build_model(model_name, num_classes=1, aux=aux)


def convert_reference(state_dict: Mapping[str, Tensor], model_name: str) -> StateDict:
    """An official CIRKD checkpoint in the names of `build_model(model_name)`.

    Args:
        state_dict: names as published, with or without a leading `module.`; entries that are not of this
            network are kept under their own names, so that loading reports them.
        model_name: which network it is, e.g. `deeplabv3_resnet18`.

    Returns:
        The same tensors (linear layers of SegFormer's decoder as 1x1 convolutions).

    Raises:
        ConfigError: the network is not one of the release's.
    """
    state = strip_prefixes(state_dict)
    own = skeleton(model_name, has_auxiliary(state)).state_dict()
    ours = {theirs: name for name, theirs in reference_names(model_name, own).items()}
    result = {}
    for theirs, value in state.items():
        name = ours.get(theirs, theirs)
        linear = value.ndim == 2 and name in own and own[name].ndim == 4
        result[name] = value.reshape(*value.shape, 1, 1) if linear else value
    return result


def to_reference(state_dict: Mapping[str, Tensor], model_name: str) -> StateDict:
    """The inverse of `convert_reference`: our entries in the release's names and shapes."""
    state = strip_prefixes(state_dict)
    names = reference_names(model_name, state)
    return {
        names[name]: value.flatten(1)
        if names[name].endswith(".proj.weight") and value.ndim == 4 and name.startswith("head.projections.")
        else value
        for name, value in state.items()
    }


def load_weights(
    model: SegmentationModel,
    source: str | Path | Mapping[str, Tensor],
    *,
    reinit_classifier: bool = False,
) -> WeightsReport:
    """Copy weights into `model`, all or nothing; into one on `meta` none, but what does not fit is found.

    See `recognise` for the weights that are known. Of an encoder's weights alone the heads stay fresh and
    classification heads are dropped. The model's `preprocessing` becomes what the weights expect, where that
    is known and the setting `preprocessing` is `auto`. Entries of an auxiliary head are dropped where the
    model was built without one.

    Args:
        model: the bare network.
        source: a run's folder, a `model.json`, a `.safetensors` or PyTorch file, or a state dict.
        reinit_classifier: keep fresh classifiers where only the number of classes differs.

    Returns:
        A report; its lists of missing, unexpected and mismatched entries are empty.

    Raises:
        WeightsError: the file cannot be read, or an entry is missing, unexpected, of another shape or not
            finite; they are listed.
    """
    report, chosen = compare(model, source, reinit_classifier=reinit_classifier)
    problems = explain(report)
    if problems:
        raise WeightsError(f"{report.source}: does not fit {model.name}:\n{problems}")
    if not _on_meta(model):
        broken = not_finite(chosen)
        if broken:
            raise WeightsError(
                f"{report.source}: {len(broken)} entries hold NaN or infinity, e.g. {broken[0]}; "
                "the training that wrote it has failed"
            )
        model.load_state_dict(chosen, strict=True)
    if report.preprocessing is not None and model.settings.get("preprocessing", "auto") == "auto":
        model.preprocessing = report.preprocessing
    return report


def _on_meta(model: SegmentationModel) -> bool:
    """Whether the model has shapes and no values, so that names and shapes of weights are all that counts."""
    return next(model.parameters()).is_meta


def compare(
    model: SegmentationModel,
    source: str | Path | Mapping[str, Tensor],
    *,
    reinit_classifier: bool = False,
) -> tuple[WeightsReport, StateDict]:
    """What `load_weights` would do: a report, and the state dict that it would load.

    Raises:
        WeightsError: the file cannot be read, or its names are of no known kind.
    """
    if isinstance(source, (str, Path)):
        name, preprocessing = str(source), find_preprocessing(source)
        state, others = read_state(locate(Path(source))[0], values=not _on_meta(model))
    else:
        name, preprocessing = "a state dict", None
        tensors, others = tensors_of(source, name)
        state = strip_prefixes(tensors)
    found = recognise(state, model)
    if found is None:
        first = ", ".join(list(state)[:3])
        raise WeightsError(
            f"{name}: holds names ({first}, ...) that are neither those of {model.name} "
            "nor of its backbone; `cirkd weights inspect` says what it is"
        )
    report, chosen = match(model, found, reinit_classifier)
    preprocessing = found.preprocessing or preprocessing
    return replace(report, source=name, others=others, preprocessing=preprocessing), chosen


def recognise(state: StateDict, model: SegmentationModel) -> Recognised | None:
    """Weights of everybody, by their names, in those of our `model`.

    Known are our own, whole networks of the CIRKD release, and ImageNet weights of the model's encoder from
    the release, timm or torchvision; None where the names are none of these.

    Raises:
        ConfigError: the weights are a network of the release, which has none called `model.name`.
    """
    if is_reference(state):
        return Recognised("reference", convert_reference(state, model.name), preprocessing=CAFFE)
    if is_own(state):
        whole = any(entry.startswith("head.") for entry in state)
        return Recognised("cirkd_ray" if whole else "cirkd_ray backbone", state)
    return match_backbone(state, model)


def not_finite(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the entries that hold NaN or infinity."""
    # Only such kinds can; of some others (of few bits, quantised) PyTorch could not even tell.
    able = {name: value for name, value in state.items() if value.is_floating_point() or value.is_complex()}
    return tuple(name for name, value in able.items() if not value.to_dense().isfinite().all())


def is_reference(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a whole network of the CIRKD release."""
    return any(name.startswith(_REFERENCE_HEADS) for name in state) and not any(
        name.startswith(ENCODER) for name in state
    )


def is_own(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are ours, given that they are not the release's, whose PSPNet shares one."""
    return any(name.startswith((ENCODER, "head.classifier.")) for name in state)


def has_auxiliary(state: Mapping[str, Tensor]) -> bool:
    """Whether an auxiliary head is among the weights, ours or the release's."""
    return any(name.startswith(("auxiliary.", "auxlayer.")) for name in state)


def match(
    model: SegmentationModel, found: Recognised, reinit_classifier: bool
) -> tuple[WeightsReport, StateDict]:
    """Compare names and shapes; the entries to load are the model's own where they stay fresh."""
    own, state = model.state_dict(), found.state
    encoder_only = found.kind.endswith("backbone")
    loaded = 0
    missing, mismatched, reinitialised, fresh = [], [], [], []
    chosen = dict(own)
    for name, value in own.items():
        given = state.get(name)
        if given is None:
            if encoder_only and not name.startswith(ENCODER):
                fresh.append(name)
            # PyTorch before 0.4.1 did not count batches; the count only matters for cumulative averages.
            elif not name.endswith(".num_batches_tracked"):
                missing.append(name)
        elif given.shape == value.shape:
            chosen[name] = given
            loaded += 1
        elif reinit_classifier and name.startswith(CLASSIFIERS) and given.shape[1:] == value.shape[1:]:
            reinitialised.append(name)
        else:
            mismatched.append((name, tuple(value.shape), tuple(given.shape)))
    surplus = [name for name in state if name not in own]
    plain = getattr(model, "auxiliary", None) is None
    dropped = tuple(name for name in surplus if plain and name.startswith("auxiliary."))
    report = WeightsReport(
        source="",
        kind=found.kind,
        loaded=loaded,
        missing=tuple(missing),
        unexpected=tuple(name for name in surplus if name not in dropped),
        mismatched=tuple(mismatched),
        reinitialised=tuple(reinitialised),
        fresh=tuple(fresh),
        dropped=dropped + found.dropped,
    )
    return report, chosen


def explain(report: WeightsReport, limit: int = 6) -> str:
    """What does not fit, a line a kind of problem; empty where all fits."""
    shapes = [f"{name} {list(found)} instead of {list(own)}" for name, own, found in report.mismatched]
    lines = []
    for what, names in (
        ("missing", report.missing),
        ("unexpected", report.unexpected),
        ("of another shape", shapes),
    ):
        if names:
            more = f", ... and {len(names) - limit} more" if len(names) > limit else ""
            lines.append(f"  {len(names)} {what}: {', '.join(names[:limit])}{more}")
    if shapes and all(name.startswith(CLASSIFIERS) for name, _, _ in report.mismatched):
        lines.append("  only the number of classes differs: model.reinit_classifier=true starts it afresh")
    return "\n".join(lines)


def aside(report: WeightsReport) -> list[tuple[str, str]]:
    """What a load left out or started afresh: a label and a sentence for each kind that there was."""
    notes = (
        ("dropped", report.dropped, "have no place in this network"),
        ("no tensors", report.others, "are no tensors and are left out"),
        ("fresh", report.fresh, "of the heads keep fresh values"),
        ("reinitialised", report.reinitialised, "of the classifier start afresh"),
    )
    return [(label, f"{len(names)} entries {why}, e.g. {names[0]}") for label, names, why in notes if names]


def require_whole(report: WeightsReport) -> None:
    """Refuse weights that leave heads or classifiers at random values where a trained network is needed.

    Raises:
        WeightsError: part of the network is not trained.
    """
    if report.fresh:
        raise WeightsError(f"{report.source}: holds an encoder only; a whole network is needed here")
    if report.reinitialised:
        raise WeightsError(
            f"{report.source}: scores another number of classes than is needed here; "
            "take a network that was trained on the same classes"
        )
