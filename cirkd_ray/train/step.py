"""One optimiser step: pure torch, no files, no Ray, and nothing that waits for the device.

`TrainStep.__call__` is the step, read top to bottom; `_accumulate` is one micro-batch of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from cirkd_ray.config import OptimSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import autocast, make_scaler
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import World, average_gradients, parallel
from cirkd_ray.train.optim import learning_rate_factor, set_learning_rate
from cirkd_ray.types import Preprocess, SegmentationOutput

WEIGHTS = "weights"
"""Stands among the terms for the weights that a step left."""
NEVER = torch.iinfo(torch.int64).max


class NonFinite:
    """Remembers, on the device, the first step at which each loss term was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first: dict[str, Tensor] = {}

    def watch(self, step: int, terms: dict[str, Tensor]) -> None:
        """Look at this step's terms."""
        for name, value in terms.items():
            if name not in self.first:
                self.first[name] = torch.full((), NEVER, dtype=torch.int64, device=self.device)
            bad = torch.where(torch.isfinite(value.detach()), NEVER, step)
            self.first[name] = torch.minimum(self.first[name], bad)


class TrainStep:
    """Forward, backward and update of one step over its micro-batches.

    Args:
        distiller: the student and the losses, on the device.
        teacher: frozen network in eval mode, or None.
        optimizer: of the distiller.
        discriminator_optimizers: of the losses' discriminators, by the loss's name.
        spec: learning rate, schedule and clipping.
        steps: length of the run.
        precision: "fp32", "bf16" or "fp16".
        world: this process among its peers.
        average: exponential moving average of the student, or None.
        channels_last: whether the networks take images in that memory format.
    """

    def __init__(
        self,
        distiller: Distiller,
        teacher: SegmentationModel | None,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizers: dict[str, torch.optim.Optimizer],
        spec: OptimSpec,
        steps: int,
        precision: str,
        world: World,
        *,
        average: AveragedModel | None = None,
        channels_last: bool = False,
    ) -> None:
        self.distiller, self.teacher, self.average = distiller, teacher, average
        self.trained = parallel(distiller, world)
        self.prepare = Preprocess(distiller.student.preprocessing).to(world.device)
        self.prepare_for_teacher = (
            self.prepare if teacher is None else Preprocess(teacher.preprocessing).to(world.device)
        )
        self.optimizer, self.discriminator_optimizers = optimizer, discriminator_optimizers
        self.scaler = make_scaler(precision, world.device)
        self.spec, self.steps, self.precision, self.world = spec, steps, precision, world
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.nonfinite = NonFinite(world.device)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.spec.lr * learning_rate_factor(self.spec, step, self.steps)

    def __call__(self, step: int, batches: Sequence[DeviceBatch]) -> dict[str, Tensor]:
        """Do step `step`; returns the detached, unweighted terms and their weighted sum `total`."""
        set_learning_rate(self.optimizer, self.lr(step))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            terms = self._accumulate(step, micro, batch, 1.0 / len(batches), last)
            for name, value in terms.items():
                sums[name] = sums[name] + value if name in sums else value
        norm = self._update()
        self._update_discriminators()
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)
        means = {name: value / len(batches) for name, value in sums.items()}
        self.nonfinite.watch(step, means)
        return means if norm is None else {**means, "grad_norm": norm}

    def watch_weights(self, step: int) -> None:
        """Look whether step `step` left weights that are finite, as a checkpoint of them should be."""
        largest = nn.utils.get_total_norm([p.detach() for p in self.parameters], math.inf)
        self.nonfinite.watch(step, {WEIGHTS: largest})

    def _accumulate(
        self, step: int, micro: int, batch: DeviceBatch, share: float, last: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; ranks exchange gradients at the last one only."""
        exchange_later = isinstance(self.trained, DistributedDataParallel) and not last
        with self.trained.no_sync() if exchange_later else nullcontext():  # type: ignore[operator]
            with autocast(self.precision, self.world.device):
                teacher = self._teach(batch)
                images = self._input(self.prepare, batch)
                total, terms = self.trained(images, batch.labels, teacher, step, micro)
            self.scaler.scale(total * share).backward()
        seen, self.distiller.seen = self.distiller.seen, None
        if seen is not None:
            for _, loss in self.distiller.discriminators():
                self._train_discriminator(loss, seen, share)
        return {name: value.detach() for name, value in {**terms, "total": total}.items()}

    def _input(self, prepare: Preprocess, batch: DeviceBatch) -> Tensor:
        images: Tensor = prepare(batch.images, batch.padding)
        return images.contiguous(memory_format=self.memory_format)

    def _teach(self, batch: DeviceBatch) -> SegmentationOutput | None:
        """The teacher's maps as ordinary tensors without history."""
        if self.teacher is None:
            return None
        with torch.inference_mode():
            out = self.teacher(self._input(self.prepare_for_teacher, batch))
        # Losses save teacher maps for backward, which inference tensors refuse; copies may be saved.
        return SegmentationOutput(
            out.logits.clone(),
            None if out.aux is None else out.aux.clone(),
            out.feature.clone(),
            {name: value.clone() for name, value in (out.stages or {}).items()},
        )

    def _update(self) -> Tensor | None:
        """Clip and apply the gradients; the norm before clipping if there is a bound."""
        norm = None
        if self.spec.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_grad_norm).detach()
        self.scaler.step(self.optimizer)
        return norm

    def _train_discriminator(self, loss: DistillationLoss, inputs: LossInputs, share: float) -> None:
        """Gradients of a loss's discriminator on the same maps, detached from the student."""
        assert loss.discriminator is not None
        loss.discriminator.requires_grad_(True)
        with autocast(self.precision, self.world.device):
            value = loss.discriminator_loss(inputs)
        self.scaler.scale(value * share).backward()  # type: ignore[no-untyped-call]
        loss.discriminator.requires_grad_(False)

    def _update_discriminators(self) -> None:
        for name, loss in self.distiller.discriminators():
            assert loss.discriminator is not None
            optimizer = self.discriminator_optimizers[name]
            average_gradients(list(loss.discriminator.parameters()), self.world)
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
