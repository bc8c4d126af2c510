"""Names of parameters in the CIRKD release, as a function of ours.

Every rule goes from our name to theirs, one to one, so that both directions of a conversion come from the
same table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cirkd_ray.errors import ConfigError
from cirkd_ray.models.build import parse_name

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

_RESNET: Rules = [
    (r"conv1\.0\.", "conv1."),
    (r"conv1\.1\.", "bn1."),
    (r"conv1\.3\.", "conv2."),
    (r"conv1\.4\.", "bn2."),
    (r"conv1\.6\.", "conv3."),
    (r"bn1\.", "bn3."),
    (r"(layer\d)", r"\1"),
]

_MOBILENETV2_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
# In blocks without expansion the depthwise convolution comes first; then the indices of the block's list are
# lower.
_EXPANDED = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
_PLAIN = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}


def _mobilenetv2_block(match: re.Match[str]) -> str:
    stage, block, layer = int(match[1]), int(match[2]), match[3]
    number = 1 + sum(_MOBILENETV2_DEPTHS[:stage]) + block
    position = (_PLAIN if stage == 0 else _EXPANDED)[layer]
    return f"net.features.{number}.conv.{position}."


_MOBILENETV2: Rules = [
    (r"conv_stem\.", "net.features.0.0."),
    (r"bn1\.", "net.features.0.1."),
    (r"blocks\.(\d+)\.(\d+)\.(\w+)\.", _mobilenetv2_block),
]

_V3_LAYERS = {"conv_pw": "expand_conv.conv", "bn1": "expand_conv.bn", "conv_dw": "depthwise_conv.conv"}
_V3_LAYERS |= {"bn2": "depthwise_conv.bn", "conv_pwl": "linear_conv.conv", "bn3": "linear_conv.bn"}
_V3_LAYERS |= {"se.conv_reduce": "se.conv1.conv", "se.conv_expand": "se.conv2.conv", "conv": "conv"}
_V3_FIRST = {"conv_dw": "depthwise_conv.conv", "bn1": "depthwise_conv.bn"}
_V3_FIRST |= {"conv_pw": "linear_conv.conv", "bn2": "linear_conv.bn"}


def _mobilenetv3(depths: tuple[int, ...]) -> Rules:
    """Layers numbered through all stages; the first has no expansion, the last is a plain convolution."""

    def block(match: re.Match[str]) -> str:
        stage, index, layer = int(match[1]), int(match[2]), match[3]
        number = 1 + sum(depths[:stage]) + index
        if stage == len(depths) - 1:
            return f"layer{number}.{'bn' if layer == 'bn1' else 'conv'}."
        first = _V3_FIRST if stage == 0 else {}
        return f"layer{number}.{first.get(layer) or _V3_LAYERS[layer]}."

    return [
        (r"conv_stem\.", "layer0.conv."),
        (r"bn1\.", "layer0.bn."),
        (r"blocks\.(\d+)\.(\d+)\.(se\.conv_reduce|se\.conv_expand|\w+)\.", block),
    ]


_MOBILEVIT_DEPTHS = {"2": 2, "3": 4, "4": 3}
_VIT_LAYERS = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
_VIT_LAYERS |= {"attn.qkv": "attn.attn.in_proj", "attn.proj": "attn.attn.out_proj"}

_MOBILEVIT: Rules = [
    (r"stem\.", "stem."),
    (r"final_conv\.", "conv_1x1_exp."),
    (r"stages_(\d\.\d)\.conv(\d)_(?:1x1|kxk)\.", lambda m: f"layers.{m[1]}.conv.{int(m[2]) - 1}."),
    (r"stages_(\d\.\d)\.conv_kxk\.", r"layers.\1.local_rep.0."),
    (r"stages_(\d\.\d)\.conv_1x1\.", r"layers.\1.local_rep.1.conv."),
    (
        r"stages_(\d\.\d)\.transformer\.(\d)\.(attn\.qkv|attn\.proj|mlp\.fc\d|norm\d)\.",
        lambda m: f"layers.{m[1]}.global_rep.{m[2]}.{_VIT_LAYERS[m[3]]}{'_' if m[3] == 'attn.qkv' else '.'}",
    ),
    (r"stages_(\d)\.1\.norm\.", lambda m: f"layers.{m[1]}.1.global_rep.{_MOBILEVIT_DEPTHS[m[1]]}."),
    (r"stages_(\d\.\d\.conv_(?:proj|fusion))\.", r"layers.\1."),
]

_MIT: Rules = [
    (r"patch_embed\.", "patch_embed1."),
    (r"stages_(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
    (
        r"stages_(\d)\.blocks\.(\d+)\.mlp\.dwconv\.",
        lambda m: f"block{int(m[1]) + 1}.{m[2]}.mlp.dwconv.dwconv.",
    ),
    (r"stages_(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"stages_(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
]

_CNA = {"conv": 0, "norm": 1}


def _inside(prefix: str, first: int = 0) -> Callable[[re.Match[str]], str]:
    """Replace the last group (`conv` or `norm`) by its place in a list that starts at `first`."""
    return lambda m: m.expand(prefix) + f".{first + _CNA[m[m.lastindex or 1]]}."


_HEADS: dict[str, Rules] = {
    "deeplabv3": [
        (r"branches\.(0)\.(conv|norm)\.", _inside(r"head.aspp.b\1")),
        (r"branches\.(\d)\.(conv|norm)\.", _inside(r"head.aspp.b\1.block")),
        (r"pooled\.(conv|norm)\.", _inside("head.aspp.b4.gap", 1)),
        (r"project\.(conv|norm)\.", _inside("head.aspp.project")),
        (r"fuse\.(conv|norm)\.", _inside("head.block")),
        (r"classifier\.", "head.block.4."),
    ],
    "pspnet": [
        (r"pools\.(\d)\.(conv|norm)\.", lambda m: f"head.psp.conv{int(m[1]) + 1}.{_CNA[m[2]]}."),
        (r"fuse\.(conv|norm)\.", _inside("head.block")),
        (r"classifier\.", "head.classifier."),
    ],
    "upernet": [
        (r"pools\.(\d)\.(conv|norm)\.", _inside(r"head.ppm_conv.\1")),
        (r"pool_fuse\.(conv|norm)\.", _inside("head.ppm_last_conv")),
        (r"lateral\.(\d)\.(conv|norm)\.", _inside(r"head.fpn_in.\1")),
        (r"smooth\.(\d)\.(conv|norm)\.", _inside(r"head.fpn_out.\1.0")),
        (r"fuse\.(conv|norm)\.", _inside("head.conv_last.0")),
        (r"classifier\.", "head.conv_last.1."),
    ],
    "segformer": [
        (r"projections\.(\d)\.", lambda m: f"linear_c{int(m[1]) + 1}.proj."),
        (r"fuse\.(conv|norm)\.", _inside("linear_fuse")),
        (r"classifier\.", "linear_pred."),
    ],
}

_AUXILIARY: Rules = [
    (r"fuse\.(conv|norm)\.", _inside("auxlayer.block")),
    (r"classifier\.", "auxlayer.block.4."),
]

_ENCODERS: dict[str, tuple[str, Rules]] = {
    "resnet18": ("pretrained.", _RESNET),
    "resnet50": ("pretrained.", _RESNET),
    "resnet101": ("pretrained.", _RESNET),
    "mobilenetv2": ("pretrained.", _MOBILENETV2),
    "mobilenetv3_small": ("pretrained.", _mobilenetv3((1, 2, 3, 2, 3, 1))),
    "mobilenetv3_large": ("pretrained.", _mobilenetv3((1, 2, 3, 4, 2, 3, 1))),
    "mobilevit_xxs": ("pretrained.", _MOBILEVIT),
    **{f"mit_b{level}": ("", _MIT) for level in range(6)},
}


def reference_names(model_name: str, names: Iterable[str]) -> dict[str, str]:
    """Reference name of each of our `names`, for the published network `model_name`.

    Raises:
        ConfigError: the network is not one of the release's.
    """
    architecture = parse_name(model_name)
    head = _HEADS.get(architecture.head)
    if architecture.backbone_name not in _ENCODERS or head is None or ":" in model_name:
        raise ConfigError(f"{model_name}: not a network of the CIRKD release, it has no official checkpoint")
    prefix, encoder = _ENCODERS[architecture.backbone_name]
    parts = {"encoder.body.": (prefix, encoder), "head.": ("", head), "auxiliary.": ("", _AUXILIARY)}
    return {name: _translate(name, parts) for name in names}


def reference_encoder_names(backbone_name: str, names: Iterable[str]) -> dict[str, str]:
    """Name of each of timm's `names` in the release's ImageNet weights of the published backbone."""
    _, encoder = _ENCODERS[backbone_name]
    return {name: _translate(name, {"": ("", encoder)}) for name in names}


def _translate(name: str, parts: dict[str, tuple[str, Rules]]) -> str:
    """One name by the first rule that matches its part."""
    for start, (prefix, rules) in parts.items():
        if name.startswith(start):
            rest = name.removeprefix(start)
            for pattern, replacement in rules:
                match = re.match(pattern, rest)
                if match:
                    new = replacement(match) if callable(replacement) else match.expand(replacement)
                    return prefix + new + rest[match.end() :]
    raise KeyError(f"no rule for {name}")
