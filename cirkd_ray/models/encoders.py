"""Encoders: timm builds every backbone; this file knows only how to ask it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError, WeightsError, first_line
from cirkd_ray.models.backbones import Backbone
from cirkd_ray.models.blocks import deterministic_bicubic
from cirkd_ray.models.heads.base import EncoderInfo
from cirkd_ray.types import IMAGENET, Preprocessing

MAX_STAGES = 4
"""Heads see at most this many maps, the coarsest ones: stage1 (stride 4 in most encoders) to stage4."""

# What makes timm's transformers take images of any size; each family knows one of these or none.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})

_REFUSALS = (TypeError, ValueError, AssertionError, NotImplementedError, AttributeError, RuntimeError)
"""What timm raises where a family does not know an option or has no feature maps."""


class Encoder(nn.Module):
    """A timm backbone that returns its coarsest maps, fine to coarse, all N x C x h x w.

    Args:
        backbone: how to ask timm.
        output_strides: strides of the last map to try, in this order; the first that the backbone can give is
            taken, or its own where it can give none.
        required: the stride was asked for by the user, so that no other will do.
        drop_path: stochastic depth rate; None leaves timm's own default (0 in most families, 0.1 in Swin).
        pretrained: download timm's weights.
        where: path of the model in the recipe, for messages.

    Attributes:
        info: channels and strides of the maps.
        preprocessing: what timm's weights of this backbone expect.

    Raises:
        ConfigError: timm cannot give maps, that stride, that drop path rate or weights for this backbone.
        WeightsError: the download failed.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        output_strides: tuple[int, ...] = (32,),
        required: bool = False,
        drop_path: float | None = None,
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
        if drop_path == 0:  # no family refuses what it is not asked for
            for module in self.body.modules():
                if type(module).__name__ == "DropPath":
                    setattr(module, "drop_prob", 0.0)  # noqa: B010 - timm's module has no type here
        _spread_over_depth(self.body)
        info = _feature_info(self.body)
        strides = tuple(int(value) for value in info.reduction())
        self.info = EncoderInfo(tuple(int(c) for c in info.channels())[-MAX_STAGES:], strides[-MAX_STAGES:])
        if backbone.adjust is not None:
            backbone.adjust(self.body, strides[-1])
        self.multiple = max(strides) if backbone.pad else 1
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.preprocessing = timm_preprocessing(backbone.timm_name) if backbone.plain else IMAGENET
        self._name = backbone.timm_name
        if backbone.pad and not next(self.parameters()).is_meta:
            self.probe(where)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of N x 3 x H x W images; a map of stride s is ceil(H / s) x ceil(W / s)."""
        height, width = images.shape[-2:]
        if self.multiple > 1:
            images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        with deterministic_bicubic(images):
            maps = list(self.body(images))[-MAX_STAGES:]
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        if self.multiple > 1:
            strides = self.info.strides
            maps = [x[..., : cells(height, s), : cells(width, s)] for x, s in zip(maps, strides, strict=True)]
        return maps

    @torch.no_grad()
    def probe(self, where: str) -> None:
        """One small forward: the maps are what timm says they are, and the size of images is free.

        Raises:
            ConfigError: they are not, or it is not.
        """
        device = next(self.parameters()).device
        height, width = 2 * self.multiple, 3 * self.multiple
        strides = self.info.strides
        sizes = zip(self.info.channels, strides, strict=True)
        expected = [(channels, cells(height, s), cells(width, s)) for channels, s in sizes]
        self.eval()
        try:
            found = [tuple(x.shape[1:]) for x in self(torch.zeros(1, 3, height, width, device=device))]
        except _REFUSALS as error:
            reason = first_line(error)
            raise ConfigError(
                f"{where}: timm's {self._name!r} takes images of one size only, "
                f"which segmentation cannot use ({reason})"
            ) from None
        self.train()
        if found != expected:
            raise ConfigError(f"{where}: {self._name!r} gives maps of {found}, but timm declares {expected}")


def cells(side: int, stride: int) -> int:
    """ceil(side / stride), without a division of negative numbers: ONNX rounds those towards zero."""
    return (side + stride - 1) // stride


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
        extra = {} if stride == 32 else {"output_stride": stride}
        try:
            body = _features(name, {**options, **extra}, pretrained, where)
        except ConfigError:
            continue
        if _feature_info(body).reduction()[-1] == stride:
            return body
        native = body if stride == 32 else native
    native = _features(name, options, pretrained, where) if native is None else native
    given = int(_feature_info(native).reduction()[-1])
    if required and given not in output_strides:
        raise ConfigError(
            f"{where}.output_stride: {name!r} cannot give {output_strides[0]}; "
            f"its own is {given} (leave it unset)"
        )
    return native


def _features(name: str, options: Mapping[str, Any], pretrained: bool, where: str) -> nn.Module:
    """A feature extractor, for images of any size where the family can.

    Raises:
        ConfigError: timm refuses the options, or has no feature maps for this backbone.
        WeightsError: the download failed.
    """
    reason = ""
    for any_size in _ANY_SIZE:
        try:
            settings = {**options, **any_size}
            model: nn.Module = timm.create_model(name, features_only=True, pretrained=pretrained, **settings)
        except _REFUSALS as error:
            logging.getLogger(__name__).debug("timm refuses %s with %s", name, settings, exc_info=True)
            reason = first_line(error)
            continue
        except OSError as error:
            if not pretrained:
                raise
            raise WeightsError(
                f"{where}.pretrained: timm's weights of {name!r} could not be had ({type(error).__name__}); "
                f"without a network, give a file instead: --set {where}.weights=PATH"
            ) from None
        return model
    raise ConfigError(f"{where}: timm cannot give feature maps of {name!r}: {reason}")


def _feature_info(body: nn.Module) -> Any:
    """timm's description of the maps."""
    return body.feature_info


def _spread_over_depth(body: nn.Module) -> None:
    """Take a plain transformer's maps at equal distances over its depth instead of from its last blocks."""
    info: Any = _feature_info(body)
    depth = len(info)
    if type(body).__name__ != "FeatureGetterNet" or len(set(info.reduction())) > 1 or depth <= MAX_STAGES:
        return
    indices = [depth * (i + 1) // MAX_STAGES - 1 for i in range(MAX_STAGES)]
    body.out_indices = indices  # type: ignore[assignment]
    body.feature_info = info.from_other(tuple(indices))


def timm_preprocessing(name: str) -> Preprocessing:
    """What timm's default weights of that architecture expect."""
    config = timm.get_pretrained_cfg(name)
    if config is None or len(config.mean) != 3:
        return IMAGENET
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    return Preprocessing("rgb", 1.0 / 255.0, mean, std)  # type: ignore[arg-type]
