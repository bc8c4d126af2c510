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

from cirkd_ray.config import OptimSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import autocast
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.average import StudentAverage
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import World, average_gradients, parallel
from cirkd_ray.train.optim import learning_rate_factor, set_learning_rate
from cirkd_ray.train.update import FiniteUpdate
from cirkd_ray.types import Preprocess, SegmentationOutput

WEIGHTS = "weights"
"""Stands among the terms for the weights that a step left."""
NEVER = torch.iinfo(torch.int64).max


class NonFinite:
    """Remembers, on the device, the first step at which each loss term was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._first: dict[tuple[str, ...], Tensor] = {}

    @property
    def first(self) -> dict[str, Tensor]:
        """Name -> the first such step, `NEVER` if there was none."""
        found: dict[str, Tensor] = {}
        for names, steps in self._first.items():
            for name, step in zip(names, steps.unbind(), strict=True):
                found[name] = torch.minimum(found[name], step) if name in found else step
        return found

    def watch(self, step: int, names: tuple[str, ...], values: Tensor) -> None:
        """Look at this step's terms, one value a name."""
        if names not in self._first:
            self._first[names] = torch.full((len(names),), NEVER, dtype=torch.int64, device=self.device)
        bad = torch.where(torch.isfinite(values), NEVER, step)
        self._first[names] = torch.minimum(self._first[names], bad)


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
        average: StudentAverage | None = None,
        channels_last: bool = False,
    ) -> None:
        self.distiller, self.teacher, self.average = distiller, teacher, average
        self.trained = parallel(distiller, world)
        self.prepare = Preprocess(distiller.student.preprocessing).to(world.device)
        self.prepare_for_teacher = self.prepare
        if teacher is not None and teacher.preprocessing != distiller.student.preprocessing:
            self.prepare_for_teacher = Preprocess(teacher.preprocessing).to(world.device)
        self.optimizer, self.discriminator_optimizers = optimizer, discriminator_optimizers
        self.update = FiniteUpdate(precision, world.device)
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
        names: tuple[str, ...] = ()
        values: list[Tensor] = []
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            terms = self._accumulate(step, micro, batch, 1.0 / len(batches), last)
            names = tuple(terms)
            values.append(torch.stack([*terms.values()]))
        norm = self.apply()
        means = values[0] if len(values) == 1 else torch.stack(values).sum(0) / len(values)
        self.nonfinite.watch(step, names, means)
        found = dict(zip(names, means.unbind(), strict=True))
        return found if norm is None else {**found, "grad_norm": norm}

    def apply(self) -> Tensor | None:
        """Let the gradients move everything that is trained; the student's norm where there is a bound."""
        norm = self._update()
        self._update_discriminators()
        self.update.finish()
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)
        return norm

    def watch_weights(self, step: int) -> None:
        """Look whether step `step` left weights that are finite, as a checkpoint of them should be."""
        largest = nn.utils.get_total_norm([p.detach() for p in self.parameters], math.inf)
        self.nonfinite.watch(step, (WEIGHTS,), largest.unsqueeze(0))

    def _accumulate(
        self, step: int, micro: int, batch: DeviceBatch, share: float, last: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; ranks exchange gradients at the last one only."""
        exchange_later = isinstance(self.trained, DistributedDataParallel) and not last
        with self.trained.no_sync() if exchange_later else nullcontext():  # type: ignore[operator]
            with autocast(self.precision, self.world.device):
                images = self.network_input(self.prepare, batch)
                teacher = self.teach(batch, images)
                total, terms = self.trained(images, batch.labels, teacher, step, micro)
            self.update.backward(total, share)
        seen, self.distiller.seen = self.distiller.seen, None
        if seen is not None:
            for _, loss in self.distiller.discriminators():
                self._train_discriminator(loss, seen, share)
        return {name: value.detach() for name, value in {**terms, "total": total}.items()}

    def network_input(self, prepare: Preprocess, batch: DeviceBatch) -> Tensor:
        """What a network takes, in its memory format."""
        images: Tensor = prepare(batch.images, batch.padding)
        return images.contiguous(memory_format=self.memory_format)

    def teach(self, batch: DeviceBatch, images: Tensor) -> SegmentationOutput | None:
        """The teacher's maps, which have no history; `images` are the student's."""
        if self.teacher is None:
            return None
        with torch.no_grad():  # not inference mode: losses save these maps for their backward pass
            if self.prepare_for_teacher is not self.prepare:
                images = self.network_input(self.prepare_for_teacher, batch)
            found: SegmentationOutput = self.teacher(images)
        return found

    def _update(self) -> Tensor | None:
        """Clip and apply the gradients; the norm before clipping if there is a bound."""
        norm = None
        if self.spec.clip_grad_norm is not None:
            self.update.unscale(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_grad_norm).detach()
        self.update.step(self.optimizer)
        return norm

    def _train_discriminator(self, loss: DistillationLoss, inputs: LossInputs, share: float) -> None:
        """Gradients of a loss's discriminator on the same maps, detached from the student."""
        assert loss.discriminator is not None
        loss.discriminator.requires_grad_(True)
        with autocast(self.precision, self.world.device):
            value = loss.discriminator_loss(inputs)
        self.update.backward(value, share)
        loss.discriminator.requires_grad_(False)

    def _update_discriminators(self) -> None:
        for name, loss in self.distiller.discriminators():
            assert loss.discriminator is not None
            optimizer = self.discriminator_optimizers[name]
            average_gradients(list(loss.discriminator.parameters()), self.world)
            self.update.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
