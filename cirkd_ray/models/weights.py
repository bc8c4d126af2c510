"""Weights of other programs in our networks: names converted, nothing skipped in silence."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cirkd_ray.errors import WeightsError
from cirkd_ray.models.build import build_model
from cirkd_ray.models.files import StateDict, read_weights, strip_prefixes, tensors_of
from cirkd_ray.models.reference_names import reference_names
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import CAFFE, Preprocessing

CLASSIFIERS = ("head.classifier.", "auxiliary.classifier.")


@dataclass(frozen=True)
class WeightsReport:
    """What a load did.

    Attributes:
        source: the file, or "a state dict".
        kind: whose names the weights had: `cirkd_ray` or `reference`.
        loaded: number of entries that were copied.
        missing: entries of the network that the weights lack.
        unexpected: entries of the weights that the network has no place for.
        mismatched: (name, shape in the network, shape in the weights).
        reinitialised: classifier entries that kept their fresh values because the number of classes differs.
        dropped: entries of an auxiliary head that the network was built without.
        preprocessing: what these weights expect, where their kind says so.
    """

    source: str
    kind: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    reinitialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


@functools.cache
def _layout(model_name: str, aux: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the published network, built without memory.

    Shapes of the classifier are those of one class.
    """
    with torch.device("meta"):
        model = build_model(model_name, num_classes=1, aux=aux)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


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
    aux = any(name.startswith("auxlayer.") for name in state)
    layout = _layout(model_name, aux)
    ours = {theirs: name for name, theirs in reference_names(model_name, layout).items()}
    result = {}
    for theirs, value in state.items():
        name = ours.get(theirs, theirs)
        shape = layout.get(name, ())
        result[name] = value.reshape(*value.shape, 1, 1) if len(shape) == 4 and value.ndim == 2 else value
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
    """Copy weights into `model`, all or nothing.

    Official CIRKD checkpoints are recognised by their names and converted; the model's `preprocessing` then
    becomes what they expect. Entries of an auxiliary head are dropped, and reported, where the model was
    built without one.

    Args:
        model: the bare network.
        source: a `.safetensors` file, a PyTorch file, or a state dict.
        reinit_classifier: keep fresh classifiers where only the number of classes differs.

    Returns:
        A report; its lists of missing, unexpected and mismatched entries are empty.

    Raises:
        WeightsError: the file cannot be read, or an entry is missing, unexpected or of another shape; they
            are listed.
    """
    name = str(source) if isinstance(source, (str, Path)) else "a state dict"
    state = (
        read_weights(source) if isinstance(source, (str, Path)) else strip_prefixes(tensors_of(source, name))
    )
    kind = "reference" if is_reference(state) else "cirkd_ray"
    if kind == "reference":
        state = convert_reference(state, model.name)
    report, chosen = _match(model, state, name, kind, reinit_classifier)
    problems = explain(report)
    if problems:
        raise WeightsError(f"{name} does not fit {model.name}:\n{problems}")
    model.load_state_dict(chosen, strict=True)
    if report.preprocessing is not None:
        model.preprocessing = report.preprocessing
    return report


def is_reference(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a whole network of the CIRKD release."""
    heads = ("head.aspp.", "head.psp.", "head.block.", "head.conv_last.", "linear_pred.")
    return any(name.startswith(heads) for name in state) and not any(n.startswith("encoder.") for n in state)


def _match(
    model: SegmentationModel, state: StateDict, source: str, kind: str, reinit_classifier: bool
) -> tuple[WeightsReport, StateDict]:
    """Compare names and shapes; the entries to load are the model's own where they stay fresh."""
    own = model.state_dict()
    mismatched, reinitialised = [], []
    chosen: StateDict = {}
    for name, value in own.items():
        if name not in state:
            continue
        if state[name].shape == value.shape:
            chosen[name] = state[name]
        elif reinit_classifier and name.startswith(CLASSIFIERS) and state[name].shape[1:] == value.shape[1:]:
            chosen[name] = value
            reinitialised.append(name)
        else:
            mismatched.append((name, tuple(value.shape), tuple(state[name].shape)))
    surplus = [name for name in state if name not in own]
    dropped = [name for name in surplus if model.auxiliary is None and name.startswith("auxiliary.")]
    report = WeightsReport(
        source=source,
        kind=kind,
        loaded=len(chosen) - len(reinitialised),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in surplus if name not in dropped),
        mismatched=tuple(mismatched),
        reinitialised=tuple(reinitialised),
        dropped=tuple(dropped),
        preprocessing=CAFFE if kind == "reference" else None,
    )
    return report, chosen


def explain(report: WeightsReport, limit: int = 6) -> str:
    """What does not fit, a line a kind of problem; empty where all fits."""
    lines = []
    for what, names in (("missing", report.missing), ("unexpected", report.unexpected)):
        if names:
            lines.append(f"  {len(names)} {what}: {_listed(list(names), limit)}")
    if report.mismatched:
        shown = [f"{name} {list(found)} instead of {list(own)}" for name, own, found in report.mismatched]
        lines.append(f"  {len(shown)} of another shape: {_listed(shown, limit)}")
        if all(name.startswith(CLASSIFIERS) for name, _, _ in report.mismatched):
            lines.append(
                "  only the number of classes differs: reinit_classifier=true starts the classifier afresh"
            )
    return "\n".join(lines)


def _listed(names: list[str], limit: int) -> str:
    """The first few names and how many more there are."""
    more = f", ... and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
