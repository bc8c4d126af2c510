"""Means over the global batch, and gathers, with the gradients of one process with the joined batch.

DistributedDataParallel averages gradients over ranks. A mean over valid pixels is therefore formed as
`local sum * world / global count`: its average over ranks, and so the averaged gradient, is that of the
joined batch. Without an initialised process group everything here is plain arithmetic. Nothing waits for
the device.

The differentiable gather is ours. `torch.distributed.nn.functional` warns that it is deprecated
(torch 2.15), cannot be compiled, and has no reduce-scatter on gloo; its successors are private in torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def global_scale(count: Tensor) -> Tensor:
    """`world / global count`, the factor that makes a local sum a global mean; 0 counts give a finite factor.

    Args:
        count: number of terms of the local sum (any numeric or bool scalar tensor).
    """
    world = rank_and_world()[1]
    count = count.detach().to(torch.float32)
    if world > 1:
        count = count.clone()
        dist.all_reduce(count)
    return world / count.clamp(min=1.0)


def mask_scale(mask: Tensor) -> Tensor:
    """`global_scale` of the true entries of a mask."""
    return global_scale(mask.sum())


def masked_mean(values: Tensor, mask: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """Mean of `values` where `mask` is true, over the global batch; 0, and differentiable, where there is
    none.

    Args:
        values: any shape; reduced in float32 (or float64).
        mask: bool, broadcastable to `values`, or None for the plain mean (ranks hold equally many values).
        scale: `mask_scale` of a mask in the shape of `values`, where the caller has it.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    total = torch.where(mask, values, 0.0).sum()
    return total * (mask_scale(mask) if scale is None else scale).to(total.dtype)


def all_gather(x: Tensor) -> Tensor:
    """Join equally shaped tensors of all ranks along dimension 0, without gradients."""
    world = rank_and_world()[1]
    if world == 1:
        return x.detach()
    x = x.detach().contiguous()
    out = x.new_empty((world * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x)
    return out


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums every rank's gradient of this rank's part (a reduce-scatter)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        out = grad.new_empty((grad.shape[0] // rank_and_world()[1], *grad.shape[1:]))
        dist.reduce_scatter_tensor(out, grad)
        return out


def all_gather_grad(x: Tensor) -> Tensor:
    """`all_gather` through which gradients flow back to every rank's part.

    Each rank's loss is a mean over its own rows against the keys of all ranks; the gradient of the sum of
    the ranks' losses with respect to one rank's features has a share from every rank. DDP's average then
    divides by the world.
    """
    if rank_and_world()[1] == 1:
        return x
    return _Gather.apply(x)  # type: ignore[no-any-return]


def all_reduce_grad(x: Tensor) -> Tensor:
    """Sum of small tensors over ranks, differentiable.

    A loss computed from it is the same on every rank; as with `all_gather_grad`, each rank's gradient is
    that of the sum of the ranks' losses, and DDP's average divides by the world.
    """
    return all_gather_grad(x.unsqueeze(0)).sum(0)
