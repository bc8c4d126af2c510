"""CIRKD: relations of pixels to queues of pixel and region embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import queues
from cirkd_ray.losses.base import LOSSES, Count, LossInputs, Temperature
from cirkd_ray.losses.maps import MapLoss, MapPair, Taught, row_weights, tokens, unit
from cirkd_ray.losses.reduce import all_gather
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
    kd_temperature^2, mean over valid pixels. The candidates of the step's global batch are enqueued before
    keys are drawn: a region, and up to `pixel_candidates` random pixels, a class and image.

    Each step draws the same `pixel_keys // K + 1` (`region_keys // K + 1`) slots of every class. With
    `pixel_keys = (pixel_memory - 1) * K` all slots are drawn.

    Deviations from the reference: a class's pixel queue receives pixels of that class, and queues are true
    rings. `mode: reference` reproduces the published defects (positions 0..n-1 of the image for a class of
    n pixels; a full pixel queue overwrites its tail and starts again at 0).

    Args:
        temperature: divides similarities before the softmax; lower: only the nearest keys count.
        kd_temperature: divides them once more; the term is multiplied by its square.
        pixel_memory: pixels in the queue of a class.
        region_memory: regions in the queue of a class.
        pixel_keys: pixel keys drawn a step, over all classes.
        region_keys: region keys drawn a step, over all classes.
        pixel_candidates: pixels of a class and image put into its queue at most.
        storage: numbers of the queues; bfloat16 takes half the memory.
        mode: `reference`: the published queues with their defects (above).
    """

    terms = ("memory_pixel", "memory_region")
    default_weights: ClassVar = {"memory_pixel": 0.1, "memory_region": 0.1}
    adapted: ClassVar = "never"
    pixel: queues.ClassQueue
    region: queues.ClassQueue

    def __init__(
        self,
        *,
        temperature: Temperature = 0.1,
        kd_temperature: Temperature = 1.0,
        pixel_memory: Count = 20_000,
        region_memory: Count = 2_000,
        pixel_keys: Count = 4096,
        region_keys: Count = 1024,
        pixel_candidates: Count = 16,
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
        self.projector = projector(self.student_width, self.teacher_width)
        sizes = {"pixel": (pixel_memory, pixel_keys), "region": (region_memory, region_keys)}
        self.draws = {
            f"memory_{name}": queues.keys_per_class(keys, self.num_classes, slots, name)
            for name, (slots, keys) in sizes.items()
        }
        for name, (slots, _) in sizes.items():
            label, shape = f"cirkd_memory {name}_memory", (self.num_classes, slots, self.teacher_width)
            setattr(self, name, queues.ClassQueue(label, *shape, getattr(torch, storage)))

    def activate(self, terms: frozenset[str]) -> None:
        super().activate(terms)
        for term, queue in QUEUES.items():
            if term not in terms:
                delattr(self, queue)

    def adapt(self, student: Tensor) -> Tensor:
        projected: Tensor = self.projector(student)
        return projected

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = tokens(unit(pair.student)), tokens(inputs.shared(unit, pair.teacher))
        if inputs.micro == inputs.step_batch.first:
            self._enqueue(pair, inputs)
        rows_s, rows_t, terms = student.flatten(0, 1), teacher.flatten(0, 1), {}
        weights = row_weights(student, pair.mask, inputs).flatten()
        for term in sorted(self.active):
            queue: queues.ClassQueue = getattr(self, QUEUES[term])
            keys = queue.draw(self.draws[term], *inputs.key(term)).to(student.dtype).unsqueeze(0)
            terms[term] = relational_kl(
                rows_s,
                rows_t,
                keys,
                keys,
                weights,
                temperature=self.temperature,
                kd_temperature=self.kd_temperature,
                relations=inputs.relations,
            )
        return terms

    @torch.no_grad()
    def _enqueue(self, pair: MapPair, inputs: LossInputs) -> None:
        """Write the candidates of all images of the step, in their order, on every rank alike."""
        parts = [all_gather(self._candidates(taught, inputs)) for taught in self.of_step(pair, inputs)]
        gathered = parts[0] if len(parts) == 1 else torch.cat(parts)
        if "memory_region" in self.active:
            self.region.push(gathered[:, :, 0].transpose(0, 1))
            gathered = gathered[:, :, 1:]
        if "memory_pixel" in self.active:
            if self.mode == "class":
                self.pixel.push(gathered.transpose(0, 1).flatten(1, 2))
            else:
                for image in gathered:  # the published pointer rule is sequential over images
                    self.pixel.push(image, reference=True)

    def _candidates(self, taught: Taught, inputs: LossInputs) -> Tensor:
        """Those of this rank's images of a micro-batch: N x K x (region and pixels) x C."""
        own = taught.micro == inputs.micro  # what the others' losses share is made in their own turn
        teacher = tokens(inputs.shared(unit, taught.teacher) if own else unit(taught.teacher))
        labels = taught.labels.flatten(1)
        images, pixels, _ = teacher.shape
        classes, candidates = self.num_classes, []
        if "memory_region" in self.active:
            candidates.append(queues.region_candidates(teacher, labels, classes))
        if "memory_pixel" in self.active:
            bits = inputs.bits("candidates", images, pixels, labels.device, taught.micro)
            pick = queues.pixel_candidates if self.mode == "class" else queues.pixel_candidates_reference
            candidates.append(pick(teacher, labels, bits, classes, self.pixel_candidates))
        return torch.cat(candidates, 2).to(getattr(self, QUEUES[min(self.active)]).queue.dtype)
