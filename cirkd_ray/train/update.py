"""Gradients that are not finite never reach the weights, and nobody waits to know whether they are."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.device import make_scaler


class FiniteUpdate:
    """Applies an optimiser's gradients where all of them are finite, else none.

    Whether they are is known on the device alone: there, fused optimisers look at the answer. Ranks see the
    same gradients and so decide alike. In float16 torch's gradient scaler does this with its scale; in other
    precisions nothing is scaled.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: of the gradients.

    Attributes:
        scaler: scales gradients in float16, else does nothing; part of checkpoints.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.scaler = make_scaler(precision, device)
        self._one = torch.ones((), dtype=torch.float32, device=device)

    def backward(self, loss: Tensor, share: float) -> None:
        """Add `share` times the gradient of `loss`; if the loss is not finite, none of them is."""
        seed = loss.detach() * 0.0 + share  # 0 times what is not finite is nan
        if self.scaler.is_enabled():
            seed = self.scaler.scale(seed)
        torch.autograd.backward(loss, seed)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimiser's gradients their own size, as clipping wants them."""
        self.scaler.unscale_(optimizer)

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update where every gradient is finite."""
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        found = torch.zeros_like(self._one)
        for dtype in {g.dtype for g in gradients}:
            same = [g for g in gradients if g.dtype == dtype]
            torch._amp_foreach_non_finite_check_and_unscale_(same, found, self._one)
        if optimizer.param_groups[0].get("fused"):
            optimizer.found_inf = found  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not found.item():
            optimizer.step()

    def finish(self) -> None:
        """End the step, after all optimisers."""
        self.scaler.update()
