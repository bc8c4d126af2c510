"""What a segmentation network is, and the one that is built here: an encoder, a head, an auxiliary head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.models.encoders import Encoder, cells
from cirkd_ray.models.heads.base import EncoderInfo, Head
from cirkd_ray.types import Preprocessing, SegmentationOutput

_SPARED = ("pos_embed", "position_bias", "cls_token", "reg_token", "dist_token")
"""Parameters of more than one dimension that transformers keep from weight decay."""


class SegmentationModel(nn.Module):
    """Base of every network: named outputs, and what others have to know of them.

    Args:
        name, num_classes, settings: what rebuilds it where it can be rebuilt:
            `build_model(name, num_classes=num_classes, **settings)`.
        preprocessing: what its weights expect of their input.
        channels: channels of `feature` and of every map that can be tapped.
        strides: input pixels a pixel of `logits`, `feature`, `aux` and of every map that can be tapped.

    Attributes:
        align_corners: how its logits are to be resized to the size of the labels. True in all published
            networks, as in the CIRKD release (SegFormer's own decoder uses False inside).
        taps: names of the inner maps to return in `SegmentationOutput.stages`; assignable.
    """

    align_corners: bool = True

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        settings: dict[str, Any],
        preprocessing: Preprocessing,
        channels: dict[str, int],
        strides: dict[str, int],
    ) -> None:
        super().__init__()
        self.name, self.num_classes, self.settings = name, num_classes, settings
        self.preprocessing = preprocessing
        self.channels, self.strides = channels, strides
        self._taps: frozenset[str] = frozenset()

    @property
    def taps(self) -> frozenset[str]:
        """Names of the inner maps to return.

        Raises:
            ConfigError: on assignment of a map that this network does not have.
        """
        return self._taps

    @taps.setter
    def taps(self, names: frozenset[str]) -> None:
        known = [name for name in self.channels if name != "feature"]
        for name in names:
            if name not in known:
                raise ConfigError(f"{self.name}: no inner map {name!r}{nearest(name, known)}")
        self._taps = frozenset(names)

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Class scores and maps of N x 3 x H x W preprocessed images."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters in groups with a `name`, for optimisers.

        The names are `encoder`, `encoder_no_decay`, `head` and `head_no_decay` (the auxiliary head counts as
        head); the `no_decay` groups hold biases, norms' scales, position embeddings and tokens: everything
        that a transformer's recipe keeps from weight decay. Empty groups are left out.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part = "encoder" if name.startswith("encoder.") else "head"
            plain = parameter.ndim <= 1 or any(spared in name for spared in _SPARED)
            groups.setdefault(f"{part}_no_decay" if plain else part, []).append(parameter)
        order = ("encoder", "encoder_no_decay", "head", "head_no_decay")
        return [{"name": name, "params": groups[name]} for name in order if name in groups]


class EncoderDecoder(SegmentationModel):
    """An encoder, a head, and where published an auxiliary head; images of any size.

    Args:
        encoder: returns a list of maps, fine to coarse: `stage1` (finest) to `stageN`.
        head: turns them into a feature map and class scores.
        auxiliary: the same from all but the coarsest map, or None.
        described: name, num_classes, settings and preprocessing, as of `SegmentationModel`.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        auxiliary: Head | None,
        **described: Any,
    ) -> None:
        stages = stage_names(encoder.info)
        super().__init__(
            **described,
            channels={"feature": head.channels, **dict(zip(stages, encoder.info.channels, strict=True))},
            strides={
                "logits": head.stride,
                "feature": head.stride,
                **({"aux": auxiliary.stride} if auxiliary is not None else {}),
                **dict(zip(stages, encoder.info.strides, strict=True)),
            },
        )
        self.encoder, self.head, self.auxiliary = encoder, head, auxiliary
        self._stages = stages

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Class scores and maps of N x 3 x H x W preprocessed images."""
        stages = self.encoder(images)
        feature = self.head.features(stages)
        if self.encoder.multiple > 1:  # a head that enlarges its maps also enlarges what padding added
            height, width = (cells(side, self.head.stride) for side in images.shape[-2:])
            feature = feature[..., :height, :width]
        logits = self.head.classify(feature)
        aux = None
        if self.auxiliary is not None:
            aux = self.auxiliary.classify(self.auxiliary.features(stages[:-1]))
        tapped = {name: x for name, x in zip(self._stages, stages, strict=True) if name in self._taps}
        return SegmentationOutput(logits=logits, aux=aux, feature=feature, stages=tapped or None)


def stage_names(info: EncoderInfo) -> tuple[str, ...]:
    """`stage1` (finest) to `stageN`."""
    return tuple(f"stage{i + 1}" for i in range(len(info.channels)))
