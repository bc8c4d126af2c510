"""Encoders: timm builds every backbone; this file knows only how to ask it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError, WeightsError, nearest
from cirkd_ray.models.heads.base import EncoderInfo
from cirkd_ray.types import IMAGENET, Preprocessing

MAX_STAGES = 4
"""Heads see at most this many maps, the coarsest ones: stage1 (stride 4 in most encoders) to stage4."""


@dataclass(frozen=True)
class Backbone:
    """How timm is asked for one encoder.

    Attributes:
        timm_name: timm's name of the architecture.
        options: further arguments of `timm.create_model`.
        aux: whether the published networks with it have an auxiliary head.
        head_channels: the published feature width by head, where it differs from the head's own rule.
        plain: timm's own architecture, so that timm's weights fit it.
        drop_path: the published stochastic depth rate.
    """

    timm_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    aux: bool = False
    head_channels: Mapping[str, int] = field(default_factory=dict)
    plain: bool = False
    drop_path: float = 0.0


def _resnet(name: str) -> Backbone:
    """The 64-64-128 deep stem of the CIRKD release."""
    return Backbone(name, {"stem_type": "deep", "stem_width": 64}, aux=True)


def _mit(level: int, dims: tuple[int, ...], depths: tuple[int, ...], width: int) -> Backbone:
    """A Mix Transformer: PVTv2 with MLP ratio 4 everywhere and stage norms of eps 1e-6."""
    options = {
        "embed_dims": dims,
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (4, 4, 4, 4),
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    return Backbone(f"pvt_v2_b{level}", options, head_channels={"segformer": width}, drop_path=0.1)


_MOBILE = {"deeplabv3": 128, "pspnet": 128}
_WIDE = (64, 128, 320, 512)

BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "resnet101": _resnet("resnet101"),
    "mobilenetv2": Backbone("mobilenetv2_100", head_channels=_MOBILE, plain=True),
    "mit_b0": _mit(0, (32, 64, 160, 256), (2, 2, 2, 2), 256),
    "mit_b1": _mit(1, _WIDE, (2, 2, 2, 2), 256),
    "mit_b2": _mit(2, _WIDE, (3, 4, 6, 3), 768),
    "mit_b3": _mit(3, _WIDE, (3, 4, 18, 3), 768),
    "mit_b4": _mit(4, _WIDE, (3, 8, 27, 3), 768),
    "mit_b5": _mit(5, _WIDE, (3, 6, 40, 3), 768),
}
"""The backbones of the published tables, by the name that stands after `HEAD_`."""


def find_backbone(name: str, timm_only: bool, where: str) -> Backbone:
    """The backbone called `name`.

    Args:
        name: a name of `BACKBONES`, or of timm where `timm_only`.
        timm_only: the name came after a colon: timm's architectures first, ours where timm has none of that
            name.
        where: path of the setting, for messages.

    Raises:
        ConfigError: no such backbone.
    """
    if timm_only and timm.is_model(name):
        return Backbone(name, plain=True)
    if name in BACKBONES:
        return BACKBONES[name]
    known = timm.list_models() if timm_only else list(BACKBONES)
    source = "timm has no backbone" if timm_only else "no backbone"
    raise ConfigError(f"{where}: {source} named {name!r}{nearest(name, known)}")


class Encoder(nn.Module):
    """A timm backbone that returns its coarsest maps, fine to coarse, all N x C x h x w.

    Args:
        backbone: how to ask timm.
        output_strides: strides of the last map to try, in this order; the first that the backbone can give is
            taken.
        required: the stride was asked for by the user, so that no other will do.
        drop_path: stochastic depth rate.
        pretrained: download timm's weights.
        where: path of the model in the recipe, for messages.

    Attributes:
        info: channels and strides of the maps.
        output_stride: input pixels a pixel of the last map.
        preprocessing: what timm's weights of this backbone expect.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        output_strides: tuple[int, ...] = (32,),
        required: bool = False,
        drop_path: float = 0.0,
        pretrained: bool = False,
        where: str = "model",
    ) -> None:
        super().__init__()
        if pretrained and not backbone.plain:
            raise ConfigError(
                f"{where}.pretrained: timm has no weights for this variant of {backbone.timm_name!r}; "
                "import the reference's backbone weights instead"
            )
        options = {**backbone.options, **({"drop_path_rate": drop_path} if drop_path else {})}
        self.body = _create(backbone.timm_name, options, output_strides, required, pretrained, where)
        reductions = _reductions(self.body)
        channels = [int(value) for value in _feature_info(self.body).channels()]
        self.info = EncoderInfo(tuple(channels[-MAX_STAGES:]), tuple(reductions[-MAX_STAGES:]))
        self.output_stride = reductions[-1]
        self.preprocessing = _preprocessing(backbone.timm_name) if backbone.plain else IMAGENET

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of N x 3 x H x W images."""
        return list(self.body(images))[-MAX_STAGES:]


def _create(
    name: str,
    options: dict[str, Any],
    output_strides: tuple[int, ...],
    required: bool,
    pretrained: bool,
    where: str,
) -> nn.Module:
    """timm's feature extractor with the first output stride of the list that it can give."""
    native = None
    for stride in output_strides:
        try:
            extra = {} if stride == 32 else {"output_stride": stride}
            body = _features(name, {**options, **extra}, pretrained, where)
        except (TypeError, ValueError, AssertionError, NotImplementedError):
            continue
        if _reductions(body)[-1] == stride:
            return body
        native = body if stride == 32 else native
    native = native or _features(name, options, pretrained, where)
    if required:
        given = _reductions(native)[-1]
        raise ConfigError(
            f"{where}.output_stride: {name!r} cannot give {output_strides[0]}; "
            f"its own is {given} (leave it unset)"
        )
    return native


def _features(name: str, options: Mapping[str, Any], pretrained: bool, where: str) -> nn.Module:
    """One call of `timm.create_model`, with a failed download told plainly."""
    try:
        model: nn.Module = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
    except OSError as error:
        if not pretrained:
            raise
        logging.getLogger(__name__).debug("download of timm weights failed", exc_info=True)
        raise WeightsError(
            f"{where}.pretrained: timm's weights of {name!r} could not be had ({type(error).__name__}); "
            "without a network, load a file: --set student.weights=PATH"
        ) from None
    return model


def _feature_info(body: nn.Module) -> Any:
    """timm's description of the maps."""
    return body.feature_info


def _reductions(body: nn.Module) -> list[int]:
    """Strides of timm's maps, fine to coarse."""
    return [int(value) for value in _feature_info(body).reduction()]


def _preprocessing(name: str) -> Preprocessing:
    """What timm's default weights of that architecture expect."""
    config = timm.get_pretrained_cfg(name)
    if config is None or len(config.mean) != 3:
        return IMAGENET
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    return Preprocessing("rgb", 1.0 / 255.0, mean, std)  # type: ignore[arg-type]
