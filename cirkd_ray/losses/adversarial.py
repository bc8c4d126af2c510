"""Adversarial distillation: a discriminator tells the teacher's score maps from the student's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cirkd_ray.device import no_autocast
from cirkd_ray.losses.base import LOSSES, LossInputs, Positive
from cirkd_ray.losses.discriminator import Discriminator
from cirkd_ray.losses.maps import LogitLoss, MapPair, row_weights


class _WithGradient(torch.autograd.Function):
    """The value of a loss whose gradient with respect to `x` is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None


@LOSSES.register("adversarial")
class Adversarial(LogitLoss):
    """Holistic distillation of logits.

    Liu et al.: Structured Knowledge Distillation for Semantic Segmentation (CVPR 2019), section 3.3, with the
    discriminator of SAGAN (Zhang et al., ICML 2019). The student gets `-mean(D(S))`. The discriminator
    minimises, times `discriminator_weight`, the hinge loss `mean(max(0, 1 - D(T))) + mean(max(0, 1 +
    D(S)))`, or with `objective: wgan-gp` `mean(D(S)) - mean(D(T)) + penalty * mean((|grad D(x)| - 1)^2)` at
    random mixtures x. The terms `skd`, `ifvd` and `cwd` are published together with it (weight 0.001).

    The discriminator runs twice a step, once on the student's map and once on the teacher's (the reference:
    three times): `forward` keeps the student's run, and `discriminator_loss` of the same step uses it.

    Deviations from the reference: ignored pixels are 0 in both maps, and images without a valid pixel do
    not count (`mask_ignored: false` counts all); maps smaller than the discriminator's 64 x 64 are enlarged
    to it.

    Args:
        objective: of the discriminator (above).
        penalty: weight of the gradient penalty of `wgan-gp`.
        width: channels of the discriminator's first layer.
        discriminator_weight: factor of the discriminator's loss.
        discriminator_lr: learning rate of the discriminator's Adam.
    """

    terms = ("adversarial",)
    default_weights: ClassVar = {"adversarial": 0.001}

    def __init__(
        self,
        *,
        objective: Literal["hinge", "wgan-gp"] = "hinge",
        penalty: Annotated[float, Field(ge=0)] = 10.0,
        width: Annotated[int, Field(ge=2)] = 64,
        discriminator_weight: Positive = 0.1,
        discriminator_lr: Positive = 4e-4,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.objective, self.penalty = objective, penalty
        self.discriminator_weight, self.discriminator_lr = discriminator_weight, discriminator_lr
        self.opponent = Discriminator(self.teacher_width, width)
        self._kept: tuple[LossInputs, Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def discriminator(self) -> nn.Module:
        assert self.opponent is not None
        return self.opponent

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        weight = row_weights(pair.student.flatten(1).unsqueeze(1), pair.mask, inputs, _any_pixel).flatten()
        student, teacher = (_masked(x, pair.mask) for x in (pair.student, pair.teacher))
        if not torch.is_grad_enabled():
            return {"adversarial": -_mean(self.discriminator(student), weight)}
        # One run serves both: its graph, with the parameters in it, stays for `discriminator_loss`.
        leaf = student.detach().requires_grad_()
        with _recorded(self.discriminator):
            scores = self.discriminator(leaf)
        value = -_mean(scores, weight)
        gradient = torch.autograd.grad(value, leaf, retain_graph=True)[0]
        self._kept = (inputs, scores, student.detach(), teacher, weight)
        return {"adversarial": _WithGradient.apply(student, value.detach(), gradient)}

    def discriminator_loss(self, inputs: LossInputs) -> Tensor:
        """The discriminator's loss; `inputs` must be those of the last `forward`.

        Raises:
            RuntimeError: `forward` was not called with these inputs, or the loss was taken already.
        """
        if self._kept is None or self._kept[0] is not inputs:
            raise RuntimeError(
                "discriminator_loss uses the run of forward: call forward with the same inputs first"
            )
        _, fake, student, teacher, weight = self._kept
        self._kept = None
        with no_autocast(student):
            real = self.discriminator(teacher)
            loss = discriminator_objective(fake, real, self.objective, weight)
            if self.objective == "wgan-gp" and self.penalty > 0:
                loss = loss + self.penalty * self._gradient_penalty(student, teacher, weight, inputs)
        return loss * self.discriminator_weight

    def discriminator_optimizer(self) -> dict[str, Any]:
        return {"lr": self.discriminator_lr, "betas": (0.9, 0.99)}

    def _gradient_penalty(
        self, student: Tensor, teacher: Tensor, weight: Tensor, inputs: LossInputs
    ) -> Tensor:
        """Gulrajani et al., Improved Training of Wasserstein GANs (2017), eq. 3; it needs a third run."""
        bits = inputs.bits("mix", len(student), 1, student.device)
        mix = (bits / 2**32).to(student.dtype).view(-1, 1, 1, 1)
        x = (mix * teacher + (1 - mix) * student).requires_grad_()
        gradient = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)[0]
        excess: Tensor = gradient.flatten(1).norm(dim=1) - 1.0
        return torch.dot(excess.square(), weight)


@contextmanager
def _recorded(module: nn.Module) -> Iterator[None]:
    """Record the (otherwise frozen) parameters in the graph that is built inside."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def discriminator_objective(
    fake: Tensor, real: Tensor, objective: str, weight: Tensor | None = None
) -> Tensor:
    """What the discriminator minimises, given its scores (N x 1 x h x w) of student and teacher."""
    if objective == "hinge":
        return _mean(F.relu(1.0 - real), weight) + _mean(F.relu(1.0 + fake), weight)
    return _mean(fake, weight) - _mean(real, weight)


def _mean(scores: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over positions and, with the given weights, over images."""
    per_image = scores.flatten(1).mean(1)
    return per_image.mean() if weight is None else torch.dot(per_image, weight)


def _any_pixel(mask: Tensor) -> Tensor:
    """N x 1: whether any pixel of an image counts."""
    return mask.flatten(1).any(1, keepdim=True)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask.unsqueeze(1), 0.0)
