"""ImageNet weights of backbones from the CIRKD release, timm or torchvision, in our encoders' names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import timm
import torch
from torch import Tensor
from torchvision.models import get_model

from cirkd_ray.models.build import parse_name
from cirkd_ray.models.encoders import timm_preprocessing
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import IMAGENET, Preprocessing
from cirkd_ray.weights.files import StateDict
from cirkd_ray.weights.reference_names import reference_encoder_names

ENCODER = "encoder.body."

# What stands behind the features of a classification network of timm, torchvision or the release.
_CLASSIFICATION = re.compile(
    r"(fc|fc_norm|norm|head|head_dist|head_drop|head_norm|classifier|last_linear|pre_logits|global_pool|attn_pool"
    r"|conv_head|conv2|bn2|final_conv|norm_head|mask_token|features\.18)(\.|$)"
)


@dataclass(frozen=True)
class Recognised:
    """Weights of anybody, in our names.

    Attributes:
        kind: `cirkd_ray`, `reference`, or one of `cirkd_ray`, `reference`, `timm` and `torchvision` followed
            by ` backbone`.
        state: the entries in our names; those without a place keep their own.
        dropped: entries of a classification head, left out.
        preprocessing: what weights of that origin expect; None where the kind does not say.
    """

    kind: str
    state: StateDict
    dropped: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


def match_backbone(state: Mapping[str, Tensor], model: SegmentationModel) -> Recognised | None:
    """Read `state` as ImageNet weights of the model's encoder, or None where the names are of no known kind.

    The kind whose names are found most often is taken; fewer than half of the encoder's entries are no match.
    Of torchvision these are ResNets (plain stem, so for `HEAD:resnet18` and the like), MobileNetV2 and
    MobileNetV3; others are refused unless timm names their entries alike. The release's MobileNetV3 pads its
    strided convolutions otherwise than torchvision's; `HEAD:mobilenetv3_large_100` computes the same.

    Entries of other names are taken for timm's where a whole classification network has them in timm's order
    and shapes: ports of one network that only call its parts otherwise, as those of EfficientNet-Lite do.
    """
    state, outside = _unwrapped(state)
    architecture = parse_name(model.name)
    own = [name.removeprefix(ENCODER) for name in model.state_dict() if name.startswith(ENCODER)]
    kind, table = _best_table(model.name, own, state)
    if not kind and architecture.backbone.plain:
        state = _called_as_in_timm(state, architecture.backbone.timm_name)
        kind, table = _best_table(model.name, own, state)
    if not kind:
        return None
    placed = {table[name]: value for name, value in state.items() if name in table}
    rest = {name: value for name, value in state.items() if name not in table}
    dropped = tuple(name for name in rest if _CLASSIFICATION.match(name))
    kept = {name: value for name, value in rest.items() if name not in dropped}
    if kind == "torchvision backbone" and "mobilenetv3" in architecture.backbone.timm_name:
        placed = {name: _other_epsilon(name, value) for name, value in placed.items()}
    preprocessing = {
        "reference backbone": architecture.backbone.preprocessing,
        "timm backbone": timm_preprocessing(architecture.backbone.timm_name),
    }
    ours = {ENCODER + name: value for name, value in placed.items()}
    return Recognised(kind, ours | kept, outside + dropped, preprocessing.get(kind, IMAGENET))


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The entries of a backbone within a larger module, without its name; and those of the classifier beside.

    MMClassification, for example, saves `backbone.*` and `head.fc.*`.
    """
    outside: tuple[str, ...] = ()
    for prefix in ("backbone.", "encoder.", "pretrained."):
        others = tuple(name for name in state if not name.startswith(prefix))
        if len(others) < len(state) and all(map(_CLASSIFICATION.match, others)):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            outside += others
    return state, outside


def _best_table(model_name: str, own: list[str], state: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Kind and table of the origin whose names are found most often; an empty kind for less than half."""
    best: tuple[int, str, dict[str, str]] = (len(own) // 2, "", {})
    for kind, table in _tables(model_name, own, state):
        found = sum(name in table for name in state)
        best = max(best, (found, kind, table), key=lambda item: item[0])
    return best[1:]


def _called_as_in_timm(state: Mapping[str, Tensor], timm_name: str) -> Mapping[str, Tensor]:
    """The entries under timm's names, where all shapes are those of timm's network in its order."""
    theirs = _timm_shapes(timm_name)
    if tuple(value.shape for value in state.values()) != tuple(theirs.values()):
        return state
    return dict(zip(theirs, state.values(), strict=True))


@functools.cache
def _timm_shapes(timm_name: str) -> dict[str, torch.Size]:
    """Names and shapes of timm's whole classification network, in the order in which it is built."""
    with torch.device("meta"):
        return {name: value.shape for name, value in timm.create_model(timm_name).state_dict().items()}


def _tables(model_name: str, own: list[str], state: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Kind and table (their name -> ours) of every origin that this encoder may have weights from."""
    architecture = parse_name(model_name)
    backbone_name = architecture.backbone_name
    if ":" not in model_name:
        theirs = reference_encoder_names(backbone_name, own)
        yield "reference backbone", {name.removeprefix("net."): ours for ours, name in theirs.items()}
    present = set(state)
    yield "timm backbone", {_timm_name(name, present): name for name in own}
    if architecture.backbone.timm_name in _TORCHVISION:
        # Both build these networks in one order: only the names differ.
        yield (
            "torchvision backbone",
            dict(zip(_torchvision_names(architecture.backbone.timm_name), own, strict=False)),
        )


def _timm_name(name: str, present: set[str]) -> str:
    """Our name as timm's whole network has it: its feature extractors fold `stages.0` into `stages_0`."""
    candidates = (name, name.removeprefix("model."), re.sub(r"^([a-z]\w*?)_(\d+)\.", r"\1.\2.", name))
    return next((candidate for candidate in candidates if candidate in present), candidates[-1])


_TORCHVISION = {
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mobilenetv3_large_100": "mobilenet_v3_large",
}
"""Backbones whose entries torchvision calls otherwise than timm, by timm's name."""


@functools.cache
def _torchvision_names(timm_name: str) -> tuple[str, ...]:
    """The entries of torchvision's network, in the order in which it is built."""
    with torch.device("meta"):
        return tuple(get_model(_TORCHVISION[timm_name], weights=None).state_dict())


def _other_epsilon(name: str, value: Tensor) -> Tensor:
    """torchvision's MobileNetV3 normalises with an epsilon of 1e-3, ours with 1e-5: the variance takes it."""
    return value + (1e-3 - 1e-5) if name.endswith(".running_var") else value
