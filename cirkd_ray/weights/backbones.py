"""ImageNet weights of backbones from the CIRKD release, timm or torchvision, in our encoders' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from cirkd_ray.models.build import parse_name
from cirkd_ray.models.encoders import timm_preprocessing
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import IMAGENET, Preprocessing
from cirkd_ray.weights.files import StateDict
from cirkd_ray.weights.reference_names import reference_encoder_names

ENCODER = "encoder.body."

# What stands behind the features in a classification network, in the names of timm, torchvision and the
# release.
_CLASSIFICATION = re.compile(
    r"(fc|fc_norm|norm|head|head_dist|head_drop|head_norm|classifier|last_linear|pre_logits|global_pool|attn_pool"
    r"|conv_head|conv2|bn2|final_conv|norm_head|mask_token|features\.18)(\.|$)"
)


@dataclass(frozen=True)
class BackboneMatch:
    """A backbone file read as that of one network.

    Attributes:
        kind: `reference backbone`, `timm backbone` or `torchvision backbone`.
        state: the entries in our names; those without a place keep their own.
        dropped: entries of the classification head.
        preprocessing: what weights of that origin expect.
    """

    kind: str
    state: StateDict
    dropped: tuple[str, ...]
    preprocessing: Preprocessing


def match_backbone(state: Mapping[str, Tensor], model: SegmentationModel) -> BackboneMatch | None:
    """Read `state` as ImageNet weights of the model's encoder, or None where the names are of no known kind.

    The kind whose names are found most often is taken; fewer than half of the encoder's entries are no match.
    Of torchvision these are ResNets (plain stem, so for `HEAD:resnet18` and the like), MobileNetV2 and
    MobileNetV3; others are refused unless timm names their entries alike. The release's MobileNetV3 pads its
    strided convolutions otherwise than torchvision's; `HEAD:mobilenetv3_large_100` computes the same.
    """
    state, outside = _unwrapped(state)
    architecture = parse_name(model.name)
    own = [name.removeprefix(ENCODER) for name in model.state_dict() if name.startswith(ENCODER)]
    best: tuple[int, str, dict[str, str]] = (len(own) // 2, "", {})
    for kind, table in _tables(model.name, own, state):
        found = sum(name in table for name in state)
        best = max(best, (found, kind, table), key=lambda item: item[0])
    _, kind, table = best
    if not kind:
        return None
    placed = {table[name]: value for name, value in state.items() if name in table}
    rest = {name: value for name, value in state.items() if name not in table}
    dropped = tuple(name for name in rest if _CLASSIFICATION.match(name))
    kept = {name: value for name, value in rest.items() if name not in dropped}
    if kind == "torchvision backbone" and architecture.backbone.timm_name in _TORCHVISION_V3:
        placed = {name: _other_epsilon(name, value) for name, value in placed.items()}
    preprocessing = {
        "reference backbone": architecture.backbone.preprocessing,
        "timm backbone": timm_preprocessing(architecture.backbone.timm_name),
    }
    ours = {ENCODER + name: value for name, value in placed.items()}
    return BackboneMatch(kind, ours | kept, outside + dropped, preprocessing.get(kind, IMAGENET))


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


def _tables(model_name: str, own: list[str], state: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Kind and table (their name -> ours) of every origin that this encoder may have weights from."""
    architecture = parse_name(model_name)
    backbone_name = architecture.backbone_name
    if ":" not in model_name:
        theirs = reference_encoder_names(backbone_name, own)
        yield "reference backbone", {name.removeprefix("net."): ours for ours, name in theirs.items()}
    present = set(state)
    yield "timm backbone", {_timm_name(name, present): name for name in own}
    if architecture.backbone.timm_name == "mobilenetv2_100":
        flat = reference_encoder_names("mobilenetv2", own)
        yield "torchvision backbone", {_torchvision_mobilenetv2(name): ours for ours, name in flat.items()}
    if architecture.backbone.timm_name in _TORCHVISION_V3:
        yield "torchvision backbone", _torchvision_mobilenetv3(own)


def _timm_name(name: str, present: set[str]) -> str:
    """Our name as timm's whole network has it: its feature extractors fold `stages.0` into `stages_0`."""
    candidates = (name, name.removeprefix("model."), re.sub(r"^([a-z]\w*?)_(\d+)\.", r"\1.\2.", name))
    return next((candidate for candidate in candidates if candidate in present), candidates[-1])


def _torchvision_mobilenetv2(reference: str) -> str:
    """torchvision groups convolution, norm and activation; the release keeps them in one list."""
    match = re.fullmatch(r"net\.(features\.(\d+)\.conv)\.(\d)(\..+)", reference)
    if match is None:
        return reference.removeprefix("net.")
    place = int(match[3])
    nested = {0: "0.0", 1: "0.1", 3: "1", 4: "2"} if match[2] == "1" else {}
    nested = nested or {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
    return f"{match[1]}.{nested[place]}{match[4]}"


_TORCHVISION_V3 = ("mobilenetv3_large_100", "mobilenetv3_small_100")
_LAYER = re.compile(r"blocks\.(\d+\.\d+)\.(se\.\w+|\w+)(\..+)")
_SQUEEZE = {"se.conv_reduce": "fc1", "se.conv_expand": "fc2"}
_WITHOUT_EXPANSION = {"conv_dw": (0, 0), "bn1": (0, 1), "conv_pw": (1, 0), "bn2": (1, 1)}
_WITH_EXPANSION = {"conv_pw": (0, 0), "bn1": (0, 1), "conv_dw": (1, 0), "bn2": (1, 1)}
_WITH_EXPANSION |= {"conv_pwl": (2, 0), "bn3": (2, 1)}
_LAST = {"conv": 0, "bn1": 1}


def _torchvision_mobilenetv3(own: list[str]) -> dict[str, str]:
    """torchvision's names -> timm's: blocks numbered through, each a list of convolutions and squeezes."""
    blocks: dict[str, set[str]] = {}
    for found in filter(None, map(_LAYER.fullmatch, own)):
        blocks.setdefault(found[1], set()).add(found[2])
    number = {block: 1 + place for place, block in enumerate(blocks)}
    table = {}
    for name in own:
        match = _LAYER.fullmatch(name)
        if match is None:
            theirs = name.replace("conv_stem.", "features.0.0.").replace("bn1.", "features.0.1.")
        else:
            place = _place_in_block(match[2], blocks[match[1]])
            theirs = f"features.{number[match[1]]}.{place}{match[3]}"
        table[theirs] = name
    return table


def _place_in_block(layer: str, block: set[str]) -> str:
    """Where torchvision has one of timm's layers of a block; a squeeze stands before the last convolution."""
    if "conv" in block:
        return str(_LAST[layer])
    layout = _WITH_EXPANSION if "conv_pwl" in block else _WITHOUT_EXPANSION
    last = max(unit for unit, _ in layout.values())
    if layer in _SQUEEZE:
        return f"block.{last}.{_SQUEEZE[layer]}"
    unit, part = layout[layer]
    return f"block.{unit + (unit == last and 'se.conv_reduce' in block)}.{part}"


def _other_epsilon(name: str, value: Tensor) -> Tensor:
    """torchvision's MobileNetV3 normalises with an epsilon of 1e-3, ours with 1e-5: the variance takes it."""
    return value + (1e-3 - 1e-5) if name.endswith(".running_var") else value
