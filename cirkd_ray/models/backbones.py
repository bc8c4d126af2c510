"""The backbones of the published tables, as requests to timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
from torch import nn

from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.types import CAFFE, IMAGENET, Preprocessing


@dataclass(frozen=True)
class Backbone:
    """How timm is asked for one encoder.

    Attributes:
        timm_name: timm's name of the architecture.
        options: further arguments of `timm.create_model`.
        aux: whether the published networks with it have an auxiliary head.
        head_channels: the published feature width by head, where it differs from the head's own rule.
        plain: timm's own architecture, so that timm's weights fit it.
        drop_path: the published stochastic depth rate; None is timm's own default.
        adjust: changes timm's body (at that output stride) to what the release built, where no option does.
        pad: whether images are padded to a multiple of the coarsest stride. The published networks take them
            as they are; of timm's others, many fail on sizes that do not divide.
        preprocessing: what the ImageNet weights that the release starts from expect (whole networks of the
            release all take CAFFE, whatever their backbone started from).
    """

    timm_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    aux: bool = False
    head_channels: Mapping[str, int] = field(default_factory=dict)
    plain: bool = False
    drop_path: float | None = None
    adjust: Callable[[nn.Module, int], None] | None = None
    pad: bool = False
    preprocessing: Preprocessing = IMAGENET


_MOBILE = {"deeplabv3": 128, "pspnet": 128}
_WIDE = (64, 128, 320, 512)
# The release's MobileNetV3 pads stride-2 convolutions as TensorFlow does, but keeps PyTorch's epsilon.
_SAME = {"pad_type": "same", "bn_eps": 1e-5}
# MMClassification's configuration of mobilevit-xxsmall_8xb128_in1k: mean 0, std 255, channels not swapped.
_BGR_TO_ONE = Preprocessing("bgr", 1.0 / 255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _dilate(own_strides: Mapping[str, int], body: nn.Module, output_stride: int) -> None:
    """Give convolutions (name -> the stride that their stage has undilated) the dilation of their own stage.

    In the first block of a stage whose stride is taken away, timm keeps the dilation of the stage before; the
    release already uses the new one.
    """
    for name, own_stride in own_strides.items():
        convolution = body.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        dilation = max(1, own_stride // output_stride)
        convolution.dilation = (dilation, dilation)
        padding = dilation * (convolution.kernel_size[0] // 2)
        convolution.padding = (padding, padding)


def _adjust_mobilevit(body: nn.Module, output_stride: int) -> None:
    """The release's MobileViT: undilated transformer blocks without an activation after `conv_proj`."""
    for stage in (2, 3, 4):
        body.get_submodule(f"stages_{stage}.1.conv_proj.bn").act = nn.Identity()
    undilated = {f"stages_{stage}.1.conv_kxk.conv": 1 for stage in (3, 4)}
    _dilate(
        {**undilated, "stages_3.0.conv2_kxk.conv": 16, "stages_4.0.conv2_kxk.conv": 32}, body, output_stride
    )


def _resnet(name: str) -> Backbone:
    """The 64-64-128 deep stem of the CIRKD release."""
    return Backbone(name, {"stem_type": "deep", "stem_width": 64}, aux=True, preprocessing=CAFFE)


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


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "resnet101": _resnet("resnet101"),
    "mobilenetv2": Backbone("mobilenetv2_100", head_channels=_MOBILE, plain=True),
    "mobilenetv3_small": Backbone(
        "mobilenetv3_small_100",
        _SAME,
        head_channels=_MOBILE,
        adjust=partial(_dilate, {"blocks.2.0.conv_dw": 16, "blocks.4.0.conv_dw": 32}),
    ),
    "mobilenetv3_large": Backbone(
        "mobilenetv3_large_100",
        _SAME,
        head_channels=_MOBILE,
        adjust=partial(_dilate, {"blocks.3.0.conv_dw": 16, "blocks.5.0.conv_dw": 32}),
    ),
    "mobilevit_xxs": Backbone(
        "mobilevit_xxs", head_channels=_MOBILE, adjust=_adjust_mobilevit, preprocessing=_BGR_TO_ONE
    ),
    "mit_b0": _mit(0, (32, 64, 160, 256), (2, 2, 2, 2), 256),
    "mit_b1": _mit(1, _WIDE, (2, 2, 2, 2), 256),
    "mit_b2": _mit(2, _WIDE, (3, 4, 6, 3), 768),
    "mit_b3": _mit(3, _WIDE, (3, 4, 18, 3), 768),
    "mit_b4": _mit(4, _WIDE, (3, 8, 27, 3), 768),
    "mit_b5": _mit(5, _WIDE, (3, 6, 40, 3), 768),
}
"""The backbones of the published tables, by the name that stands after `HEAD_`."""


def find_backbone(name: str, from_timm: bool, where: str) -> Backbone:
    """The backbone called `name`.

    Args:
        name: a name of `BACKBONES`, or of timm where `from_timm`.
        from_timm: the name came after a colon: timm's architectures first, ours where timm has none of that
            name.
        where: path of the setting, for messages.

    Raises:
        ConfigError: no such backbone.
    """
    if from_timm and timm.is_model(name):
        return Backbone(name, plain=True, pad=True)
    if name in BACKBONES:
        return BACKBONES[name]
    known = timm.list_models() if from_timm else list(BACKBONES)
    source = "timm has no backbone" if from_timm else "no backbone"
    raise ConfigError(f"{where}: {source} named {name!r}{nearest(name, known)}")
