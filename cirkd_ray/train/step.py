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
from cirkd_ray.device import autocast
from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.losses.whole import WholeStep
from cirkd_ray.train.average import StudentAverage
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import World, average_gradients, parallel
from cirkd_ray.train.optim import learning_rate_factor, set_learning_rate
from cirkd_ray.train.seeds import seed_part
from cirkd_ray.train.shared import MicroBatch
from cirkd_ray.train.update import FiniteUpdate
from cirkd_ray.types import SegmentationOutput

WEIGHTS = "weights"
"""Stands among the terms for the weights that a step left."""
NEVER = torch.iinfo(torch.int64).max


def _maps(batch: MicroBatch) -> SegmentationOutput:
    """The teacher's, of a step with losses."""
    found = batch.taught()
    assert found is not None
    return found


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
        optimizer: of the distiller.
        discriminator_optimizers: of the losses' discriminators, by the loss's name.
        spec: learning rate, schedule and clipping.
        steps: length of the run.
        precision: "fp32", "bf16" or "fp16".
        world: this process among its peers.
        average: exponential moving average of the student, or None.
    """

    def __init__(
        self,
        distiller: Distiller,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizers: dict[str, torch.optim.Optimizer],
        spec: OptimSpec,
        steps: int,
        precision: str,
        world: World,
        *,
        average: StudentAverage | None = None,
    ) -> None:
        self.distiller, self.average = distiller, average
        self.trained = parallel(distiller, world)
        self.optimizer, self.discriminator_optimizers = optimizer, discriminator_optimizers
        self.update = FiniteUpdate(precision, world.device)
        self.spec, self.steps, self.precision, self.world = spec, steps, precision, world
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.nonfinite = NonFinite(world.device)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.spec.lr * learning_rate_factor(self.spec, step, self.steps)

    def __call__(self, step: int, batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
        """Do step `step`; returns the detached, unweighted terms and their weighted sum `total`.

        The maps that the losses compare with are those of the micro-batches' teacher: it may be shared.
        """
        set_learning_rate(self.optimizer, self.lr(step))
        self.optimizer.zero_grad(set_to_none=True)
        names: tuple[str, ...] = ()
        values: list[Tensor] = []
        labels = {micro: batch.labels for micro, batch in enumerate(batches)}
        self.distiller.whole = WholeStep(labels, lambda micro: _maps(batches[micro]))
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            if micro:  # the first part's is set by the caller
                seed_part(self.distiller.seed, step, micro * self.world.size + self.world.rank)
            terms = self._accumulate(step, micro, batch, 1.0 / len(batches), last)
            names = tuple(terms)
            values.append(torch.stack([*terms.values()]))
        self.distiller.whole = None
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
        self, step: int, micro: int, batch: MicroBatch, share: float, last: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; ranks exchange gradients at the last one only."""
        images = batch.images(self.distiller.student.preprocessing)
        teacher = batch.taught() if self.distiller.losses else None
        exchange_later = isinstance(self.trained, DistributedDataParallel) and not last
        with self.trained.no_sync() if exchange_later else nullcontext():  # type: ignore[operator]
            with autocast(self.precision, self.world.device):
                total, terms = self.trained(images, batch.labels, teacher, step, micro)
            self.update.backward(total, share)
        seen, self.distiller.seen = self.distiller.seen, None
        if seen is not None:
            for _, loss in self.distiller.discriminators():
                self._train_discriminator(loss, seen, share)
        batch.leave()
        return {name: value.detach() for name, value in {**terms, "total": total}.items()}

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
