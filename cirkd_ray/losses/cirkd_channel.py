"""CIRKDv2: relations among channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.base import LOSSES, AtLeastOne, Count, LossInputs, Temperature
from cirkd_ray.losses.cirkd_memory import projector
from cirkd_ray.losses.groups import Group, Groups
from cirkd_ray.losses.maps import MapLoss, MapPair, Taught, pool_mask, unit
from cirkd_ray.losses.queues import ClassQueue
from cirkd_ray.losses.reduce import all_gather, rank_and_world
from cirkd_ray.losses.relational import relational_kl


@LOSSES.register("cirkd_channel")
class CirkdChannel(MapLoss):
    """Channel-to-channel distillation.

    Yang et al.: Cross-Image Relational Knowledge Distillation, extended version (CIRKDv2, 2025). Maps are
    averaged over 4 x 4 pixels, the student's passes a projector to the teacher's width, and each channel's
    vector of pooled pixels is L2-normalised. `minibatch_channel`: for every ordered pair of images of a
    group (`groups.py`) KL between the rows of the channel similarities of teacher and student;
    `memory_channel`: the same against keys drawn from a queue of teacher channels; `channel_mse`: mean
    square of the difference of the vectors.

    A queue of vectors of pooled pixels fits one crop size: `length` is that number of pixels ((512 / 8 / 4) x
    (1024 / 8 / 4) = 512 for Cityscapes). Chosen here: of `candidates` vectors a step, every image of the
    global batch gives an equal number of random channels, rounded up (the last images give fewer where it
    does not divide); the queue is a true ring (the reference overwrites its tail). Deviation from the
    reference: ignored pixels are 0 in the channel vectors (`mask_ignored: false` counts them).

    Args:
        temperature: divides similarities before the softmax; lower: only the nearest keys count.
        kd_temperature: divides them once more; the term is multiplied by its square; of `memory_channel`.
        pool: pixels a side that are averaged.
        length: pooled pixels of a crop: its height / stride / pool times its width / stride / pool.
        channel_memory: vectors in the queue.
        channel_keys: keys drawn from it a step.
        candidates: vectors put into it a step.
        group: images of the global batch that are compared with each other; `rank`: those of a rank,
            `batch`: all.
    """

    terms = ("minibatch_channel", "memory_channel", "channel_mse")
    default_weights: ClassVar = {"minibatch_channel": 1.0, "memory_channel": 0.1, "channel_mse": 100.0}
    adapted: ClassVar = "never"

    def __init__(
        self,
        *,
        temperature: Temperature = 0.1,
        kd_temperature: Temperature = 1.0,
        pool: AtLeastOne = 4,
        length: Count = 512,
        channel_memory: Count = 10_000,
        channel_keys: Count = 2048,
        candidates: Count = 256,
        group: Group = 2,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if channel_keys > channel_memory:
            raise ConfigError(
                f"loss 'cirkd_channel': channel_memory={channel_memory} is smaller than the draw of "
                f"channel_keys={channel_keys}; raise channel_memory or lower channel_keys"
            )
        self.temperature, self.kd_temperature, self.pool = temperature, kd_temperature, pool
        self.channel_keys, self.candidates, self.group = channel_keys, candidates, group
        self.projector = projector(self.student_width, self.teacher_width)
        self.channel = ClassQueue("cirkd_channel channel_memory", 1, channel_memory, length, torch.float32)

    @classmethod
    def together(cls, active: frozenset[str], settings: Mapping[str, Any]) -> Group:
        group: Group = settings["group"]
        return group if "minibatch_channel" in active else 1

    def activate(self, terms: frozenset[str]) -> None:
        super().activate(terms)
        if "memory_channel" not in terms:
            del self.channel

    def adapt(self, student: Tensor) -> Tensor:
        projected: Tensor = self.projector(self._pooled(student))
        return projected

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student = self._vectors(pair.student, pair.mask)
        teacher = inputs.shared(self._teacher_vectors, pair.teacher, pair.mask)
        terms = {}
        if "minibatch_channel" in self.active:
            groups, parts = Groups(len(student), self.group), []
            keys_s, keys_t = groups.keys(student, teacher)
            for rows, keys in groups.parts():
                found = self._relation(student[rows], teacher[rows], keys_s[keys], keys_t[keys], 1.0, inputs)
                parts.append(found * (len(student[rows]) / len(student)))
            terms["minibatch_channel"] = torch.stack(parts).sum()
        if "memory_channel" in self.active:
            drawn = self._keys(pair, inputs).to(student.dtype).unsqueeze(0)
            terms["memory_channel"] = self._relation(
                student, teacher, drawn, drawn, self.kd_temperature, inputs
            )
        if "channel_mse" in self.active:
            terms["channel_mse"] = (student - teacher).square().mean()
        return terms

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.pool, ceil_mode=True)

    def _vectors(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """N x C x L: each channel's normalised vector of pooled pixels, 0 where nothing counts."""
        if mask is not None:
            x = x.masked_fill(~pool_mask(mask, self.pool).unsqueeze(1), 0.0)
        return unit(x.flatten(2), dim=2)

    def _teacher_vectors(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._vectors(self._pooled(x), mask)

    def _relation(
        self, q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, kd_temperature: float, inputs: LossInputs
    ) -> Tensor:
        """Mean relational KL of channels (N x C x L) to keys (S x M x L), over rows and segments."""
        rows = q_s.shape[0] * q_s.shape[1]
        return relational_kl(
            q_s.flatten(0, 1),
            q_t.flatten(0, 1),
            k_s,
            k_t,
            q_s.new_full((rows,), 1.0 / (rows * k_s.shape[0])),
            temperature=self.temperature,
            kd_temperature=kd_temperature,
            relations=inputs.relations,
        )

    @torch.no_grad()
    def _keys(self, pair: MapPair, inputs: LossInputs) -> Tensor:
        """Enqueue random channels of all images of the step, then draw keys."""
        if inputs.micro == inputs.step_batch.first:
            parts = [all_gather(self._chosen(taught, inputs)) for taught in self.of_step(pair, inputs)]
            gathered = parts[0] if len(parts) == 1 else torch.cat(parts)
            self.channel.push(gathered.flatten(0, 1)[: self.candidates].unsqueeze(0))
        return self.channel.draw(self.channel_keys, *inputs.key("memory_channel"))

    def _chosen(self, taught: Taught, inputs: LossInputs) -> Tensor:
        """Random channels of this rank's images of a micro-batch: N x chosen x L."""
        made = self._teacher_vectors, taught.teacher, taught.mask
        teacher = inputs.shared(*made) if taught.micro == inputs.micro else made[0](*made[1:])
        images, channels, length = teacher.shape
        if length != self.channel.queue.shape[2]:
            raise ConfigError(
                f"loss {self.kind!r}: the maps have {length} pooled pixels, but the queue was built for "
                f"length={self.channel.queue.shape[2]}; set length: {length}"
            )
        step_images = images * rank_and_world()[1] * len(inputs.step_batch.labels)
        share = min(channels, -(-self.candidates // step_images))
        bits = inputs.bits("channels", images, channels, teacher.device, taught.micro)
        chosen = bits.argsort(dim=1, stable=True)[:, :share].unsqueeze(-1).expand(-1, -1, length)
        return teacher.gather(1, chosen)
