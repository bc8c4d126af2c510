"""CIRKD: relations of pixels to queues of pixel and region embeddings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import queues
from cirkd_ray.losses.base import LOSSES, LossInputs
from cirkd_ray.losses.cirkd_minibatch import row_weights
from cirkd_ray.losses.hashing import pixel_bits, random_slots
from cirkd_ray.losses.maps import MapLoss, MapPair, tokens, unit
from cirkd_ray.losses.reduce import all_gather, rank_and_world
from cirkd_ray.losses.relational import relational_kl


def projector(student_width: int, teacher_width: int) -> nn.Sequential:
    """1x1 convolution to the teacher's width, BN, ReLU, 1x1 convolution; no biases."""
    return nn.Sequential(
        nn.Conv2d(student_width, teacher_width, 1, bias=False),
        nn.BatchNorm2d(teacher_width),
        nn.ReLU(inplace=True),
        nn.Conv2d(teacher_width, teacher_width, 1, bias=False),
    )


QUEUES = {"memory_pixel": "pixel", "memory_region": "region"}
"""The queue of each term."""


@LOSSES.register("cirkd_memory")
class CirkdMemory(MapLoss):
    """Memory-based pixel-to-pixel and pixel-to-region distillation.

    Yang et al.: Cross-Image Relational Knowledge Distillation for Semantic Segmentation (CVPR 2022), eqs. 7
    to 12. Projected, normalised student pixels and normalised teacher pixels are compared with keys drawn
    from a queue a class of teacher pixels, and one of teacher regions (normalised mean of a class's pixels
    in an image): KL between softmax(similarity / temperature / kd_temperature) over all keys, times
    kd_temperature^2, mean over valid pixels. The batch's candidates of all ranks are enqueued before keys
    are drawn: a region, and up to `pixel_candidates` random pixels, a class and image.

    Each step draws the same `pixel_keys // K + 1` (`region_keys // K + 1`) slots of every class. With
    `pixel_keys = (pixel_memory - 1) * K` all slots are drawn.

    Deviations from the reference: a class's pixel queue receives pixels of that class, and queues are true
    rings. `mode: reference` reproduces the published defects (positions 0..n-1 of the image for a class of
    n pixels; a full pixel queue overwrites its tail and starts again at 0).
    """

    terms = ("memory_pixel", "memory_region")
    default_weights: ClassVar = {"memory_pixel": 0.1, "memory_region": 0.1}
    adapted: ClassVar = "never"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        kd_temperature: Annotated[float, Field(gt=0)] = 1.0,
        pixel_memory: Annotated[int, Field(gt=0)] = 20_000,
        region_memory: Annotated[int, Field(gt=0)] = 2_000,
        pixel_keys: Annotated[int, Field(gt=0)] = 4096,
        region_keys: Annotated[int, Field(gt=0)] = 1024,
        pixel_candidates: Annotated[int, Field(gt=0)] = 16,
        storage: Literal["float32", "bfloat16"] = "float32",
        mode: Literal["class", "reference"] = "class",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature, self.kd_temperature = temperature, kd_temperature
        self.pixel_candidates, self.mode = pixel_candidates, mode
        if mode == "reference" and pixel_candidates > pixel_memory:
            raise ConfigError(
                f"loss 'cirkd_memory': pixel_memory={pixel_memory} is below {pixel_candidates=}"
            )
        self.draws = {
            "memory_pixel": queues.keys_per_class(
                pixel_keys, self.num_classes, pixel_memory, "pixel_memory", "pixel_keys"
            ),
            "memory_region": queues.keys_per_class(
                region_keys, self.num_classes, region_memory, "region_memory", "region_keys"
            ),
        }
        width, dtype = self.teacher_width, getattr(torch, storage)
        self.projector = projector(self.student_width, width)
        self.pixel = queues.ClassQueue(
            "cirkd_memory pixel_memory", self.num_classes, pixel_memory, width, dtype
        )
        self.region = queues.ClassQueue(
            "cirkd_memory region_memory", self.num_classes, region_memory, width, dtype
        )

    def activate(self, terms: frozenset[str]) -> None:
        super().activate(terms)
        for term, queue in QUEUES.items():
            if term not in terms:
                delattr(self, queue)

    def adapt(self, student: Tensor) -> Tensor:
        projected: Tensor = self.projector(student)
        return projected

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = tokens(unit(pair.student)), tokens(unit(pair.teacher))
        labels = pair.labels.flatten(1)
        self._enqueue(teacher, labels, inputs)
        weights = row_weights(student, None if pair.mask is None else pair.mask.flatten(1))
        rows_s, rows_t, terms = student.flatten(0, 1), teacher.flatten(0, 1), {}
        for term in sorted(self.active):
            queue: queues.ClassQueue = getattr(self, QUEUES[term])
            key = (term, inputs.seed, inputs.step, inputs.micro)
            slots = random_slots(queue.queue.shape[1], self.draws[term], student.device, *key)
            keys = queue.draw(slots).to(student.dtype).unsqueeze(0)
            terms[term] = relational_kl(
                rows_s,
                rows_t,
                keys,
                keys,
                weights,
                temperature=self.temperature,
                kd_temperature=self.kd_temperature,
            )
        return terms

    @torch.no_grad()
    def _enqueue(self, teacher: Tensor, labels: Tensor, inputs: LossInputs) -> None:
        """Pick candidates of the local images (N x L x C), gather them, write them on every rank alike."""
        images, pixels, _ = teacher.shape
        classes, candidates = self.num_classes, []
        queue_type = getattr(self, QUEUES[min(self.active)]).queue.dtype
        if "memory_region" in self.active:
            candidates.append(queues.region_candidates(teacher, labels, classes))
        if "memory_pixel" in self.active:
            key = ("candidates", inputs.seed, inputs.step, inputs.micro)
            bits = pixel_bits(images, pixels, rank_and_world()[0] * images, labels.device, *key)
            pick = queues.pixel_candidates if self.mode == "class" else queues.pixel_candidates_reference
            candidates.append(pick(teacher, labels, bits, classes, self.pixel_candidates))
        gathered = all_gather(torch.cat(candidates, 2).to(queue_type))
        if "memory_region" in self.active:
            self.region.push(gathered[:, :, 0].transpose(0, 1))
            gathered = gathered[:, :, 1:]
        if "memory_pixel" in self.active:
            if self.mode == "class":
                self.pixel.push(gathered.transpose(0, 1).flatten(1, 2))
            else:
                for image in gathered:  # the published pointer rule is sequential over images
                    self.pixel.push_reference(image)
