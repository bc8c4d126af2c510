"""CIRKDv2: all of its terms on one student feature that has passed the context module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from cirkd_ray.losses.base import (
    LOSSES,
    AtLeastOne,
    Count,
    DistillationLoss,
    LossInputs,
    Temperature,
    channels_of,
)
from cirkd_ray.losses.cirkd_channel import CirkdChannel
from cirkd_ray.losses.cirkd_memory import CirkdMemory
from cirkd_ray.losses.cirkd_minibatch import CirkdMinibatch
from cirkd_ray.losses.context import ContextModule
from cirkd_ray.losses.fitnet import FitNet
from cirkd_ray.losses.groups import Group
from cirkd_ray.losses.maps import tap_map

PARTS = (FitNet, CirkdMinibatch, CirkdMemory, CirkdChannel)


@LOSSES.register("cirkd_v2")
class CirkdV2(DistillationLoss):
    """CIRKDv2 as one loss: features, pixels, memory and channels at once.

    Yang et al., extended version of CIRKD (CIRKDv2, 2025): the student's feature passes a context module, in
    training only, and `fitnet`, `cirkd_minibatch`, `cirkd_memory` and `cirkd_channel` all compare that
    feature with the teacher's. Their equations, settings and deviations are in their own classes;
    `temperature` and `kd_temperature` go to all that have them, `length` is that of `cirkd_channel`. Used
    apart, the four losses see the feature itself.

    Args:
        context: let the feature pass the context module (the reference: whenever fitnet has a weight).
        temperature: divides similarities before the softmax; lower: only the nearest keys count.
        kd_temperature: divides them once more; the term is multiplied by its square.
        pool: pixels a side that are averaged before channels are compared.
        group: images of the global batch that are compared with each other; `rank`: those of a rank,
            `batch`: all.
        pixel_memory: pixels in the queue of a class.
        region_memory: regions in the queue of a class.
        pixel_keys: pixel keys drawn a step, over all classes.
        region_keys: region keys drawn a step, over all classes.
        length: pooled pixels of a crop, see `cirkd_channel`.
        channel_memory: vectors in the queue of channels.
        channel_keys: keys drawn from it a step.
        mask_ignored: leave ignored pixels out, see `MapLoss`.
    """

    terms = tuple(term for part in PARTS for term in part.terms)
    default_weights: ClassVar = {
        term: 1.0 if term == "fitnet" else part.default_weights.get(term, 1.0)
        for part in PARTS
        for term in part.terms
    }

    def __init__(
        self,
        *,
        context: bool = True,
        temperature: Temperature = 0.1,
        kd_temperature: Temperature = 1.0,
        pool: AtLeastOne = 1,
        group: Group = 2,
        pixel_memory: Count = 20_000,
        region_memory: Count = 2_000,
        pixel_keys: Count = 4096,
        region_keys: Count = 1024,
        length: Count = 512,
        channel_memory: Count = 10_000,
        channel_keys: Count = 2048,
        mask_ignored: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        common["mask_ignored"] = mask_ignored
        softened = {**common, "temperature": temperature, "kd_temperature": kd_temperature}
        self.student_width = channels_of(self.student_channels, "feature", self.num_classes)
        self.context: nn.Module = ContextModule(self.student_width) if context else nn.Identity()
        self.fitnet = FitNet(**common)
        self.minibatch = CirkdMinibatch(**common, temperature=temperature, pool=pool, group=group)
        self.memory = CirkdMemory(
            **softened,
            pixel_memory=pixel_memory,
            region_memory=region_memory,
            pixel_keys=pixel_keys,
            region_keys=region_keys,
        )
        self.channel = CirkdChannel(
            **softened, length=length, channel_memory=channel_memory, channel_keys=channel_keys, group=group
        )

    @classmethod
    def together(cls, active: frozenset[str], settings: Mapping[str, Any]) -> Group:
        group: Group = settings["group"]
        return group if active & {"minibatch_pixel", "minibatch_channel"} else 1

    def activate(self, terms: frozenset[str]) -> None:
        super().activate(terms)
        for name in ("fitnet", "minibatch", "memory", "channel"):
            part = getattr(self, name)
            part.kind = self.kind
            active = terms & set(part.terms)
            if active:
                part.activate(active)
            else:
                delattr(self, name)

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        feature = tap_map(self.kind, "student", inputs.student, "feature", self.student_width)
        student = inputs.student._replace(feature=self.context(feature))
        inputs, terms = replace(inputs, student=student), {}
        for part in self.children():
            if isinstance(part, DistillationLoss):
                terms.update(part(inputs))
        return terms
