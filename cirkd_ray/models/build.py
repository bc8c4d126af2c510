"""Build a network from its name and settings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from cirkd_ray.config.registry import validate
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.models.backbones import Backbone, find_backbone
from cirkd_ray.models.encoders import Encoder
from cirkd_ray.models.heads.base import HEADS, EncoderInfo, Rate
from cirkd_ray.models.heads.fcn import FCNHead
from cirkd_ray.models.segmentation import EncoderDecoder
from cirkd_ray.types import CAFFE, IMAGENET


class NetworkSettings(BaseModel):
    """Settings that every network has, beside those of its head."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    output_stride: Literal[8, 16, 32] | None = Field(
        None,
        description="input pixels a pixel of the encoder's last map; by default the finest that the head "
        "likes and the backbone can give (8 for DeepLabV3 and PSPNet, 32 for SegFormer)",
    )
    drop_path: Rate | None = Field(
        None,
        description="stochastic depth rate of the encoder; as published (0.1 for SegFormer) or timm's",
    )
    aux: bool | None = Field(
        None,
        description="an auxiliary head on the last but one map; by default as published: of ResNets",
    )
    aux_dropout: Rate = Field(0.1, description="dropout of the auxiliary head")
    pretrained: bool = Field(False, description="download timm's weights of the backbone")
    preprocessing: Literal["auto", "imagenet", "caffe"] = Field(
        "auto", description="what the weights expect; auto: what timm says of the backbone's weights"
    )


@dataclass(frozen=True)
class Architecture:
    """What a name means: a head, a backbone, and published defaults of settings."""

    head: str
    backbone_name: str
    backbone: Backbone
    defaults: dict[str, Any] = field(default_factory=dict)


_RESNETS = ("resnet18", "resnet50", "resnet101")
_MOBILE = ("mobilenetv2", "mobilenetv3_small", "mobilenetv3_large", "mobilevit_xxs")

PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"{head}_{b}": (head, b, {}) for head in ("deeplabv3", "pspnet") for b in (*_RESNETS, *_MOBILE)},
    **{f"segformer_b{level}": ("segformer", f"mit_b{level}", {}) for level in range(6)},
    "upernet_resnet18": ("upernet", "resnet18", {"output_stride": 8}),
    "deeplabv3_resnet18_v2": ("deeplabv3", "resnet18", {"head_channels": 512}),
    "deeplabv3_resnet101_v2": ("deeplabv3", "resnet101", {"head_channels": 512}),
}
"""Head, backbone and settings of the networks of CIRKD and CIRKDv2."""


def model_names() -> list[str]:
    """The networks of the published tables; any `HEAD:TIMM_NAME` is a network as well."""
    return list(PUBLISHED)


def select_names(wanted: Sequence[str]) -> list[str]:
    """Published networks that begin as asked for, all where nothing is; `HEAD:TIMM_NAME` stays as it is.

    Raises:
        ConfigError: no network begins so.
    """
    known = model_names()
    names = [] if wanted else known
    for item in wanted:
        if ":" in item:
            parse_name(item)
        found = [item] if ":" in item or item in known else [name for name in known if name.startswith(item)]
        if not found:
            raise ConfigError(f"{item}: no network of that name{nearest(item, known)}")
        names += found
    return list(dict.fromkeys(names))


def parse_name(name: str, where: str = "model") -> Architecture:
    """The architecture that `name` stands for.

    Raises:
        ConfigError: an unknown name, head or backbone.
    """
    head, colon, backbone_name = name.partition(":")
    defaults: dict[str, Any] = {}
    if not colon:
        if name not in PUBLISHED:
            raise ConfigError(
                f"{where}: no network named {name!r}{nearest(name, PUBLISHED)} (or HEAD:TIMM_NAME)"
            )
        head, backbone_name, defaults = PUBLISHED[name]
    HEADS.get(head, where)
    backbone = find_backbone(backbone_name, bool(colon), where)
    if head in backbone.head_channels:
        defaults = {"head_channels": backbone.head_channels[head], **defaults}
    return Architecture(head, backbone_name, backbone, defaults)


@functools.cache
def model_settings(name: str) -> type[BaseModel]:
    """A pydantic model of the settings of the network `name`: its head's and those of every network."""
    head = HEADS.settings(parse_name(name).head)
    return create_model(f"{name}_settings", __base__=(head, NetworkSettings))


def build_model(name: str, *, num_classes: int, where: str = "model", **settings: Any) -> EncoderDecoder:
    """Build a network with fresh weights (a function of torch's random state).

    Args:
        name: `deeplabv3_resnet18`, `pspnet_mobilenetv2`, `segformer_b0`, ... (see `model_names`), or
            `HEAD:TIMM_NAME` for any head and timm backbone.
        num_classes: number of classes.
        where: path of the model in the recipe, for messages.
        settings: the head's settings and those of `NetworkSettings`.

    Raises:
        ConfigError: an unknown name or setting, a value out of bounds, or an output stride that the backbone
            cannot give.
        WeightsError: `pretrained` and the download failed.
    """
    if num_classes < 1:
        raise ConfigError(f"{where}: a network needs at least one class, not {num_classes}")
    architecture = parse_name(name, where)
    backbone, head_class = architecture.backbone, HEADS.get(architecture.head)
    values = validate(model_settings(name), {**architecture.defaults, **settings}, where).model_dump()
    for key, published in (("aux", backbone.aux), ("drop_path", backbone.drop_path)):
        values[key] = published if values[key] is None else values[key]
    asked = values["output_stride"]
    encoder = Encoder(
        backbone,
        output_strides=(asked,) if asked else head_class.output_strides,
        required=asked is not None,
        drop_path=values["drop_path"],
        pretrained=values["pretrained"],
        where=where,
    )
    head_settings = {key: values[key] for key in HEADS.settings(architecture.head).model_fields}
    context = {"encoder": encoder.info, "num_classes": num_classes}
    return EncoderDecoder(
        encoder,
        HEADS.build(architecture.head, context, head_settings, where),
        _auxiliary(encoder.info, num_classes, values, where) if values["aux"] else None,
        name=name,
        num_classes=num_classes,
        settings=values,
        preprocessing=_PREPROCESSING.get(values["preprocessing"], encoder.preprocessing),
    )


_PREPROCESSING = {"imagenet": IMAGENET, "caffe": CAFFE}


def _auxiliary(info: EncoderInfo, num_classes: int, values: dict[str, Any], where: str) -> FCNHead:
    """The FCN head on the last but one map."""
    if len(info.channels) < 2:
        raise ConfigError(f"{where}.aux: an auxiliary head needs an encoder with at least two maps")
    finer = EncoderInfo(info.channels[:-1], info.strides[:-1])
    return FCNHead(encoder=finer, num_classes=num_classes, dropout=values["aux_dropout"])
