"""BatchNorm over all ranks, or over groups of them, without waiting for the device.

`torch.nn.SyncBatchNorm` leaves out ranks that hold no pixels, by a mask whose result the host waits for: 96
waits a step of a ResNet-18 with its head. Ranks of a run always hold equally many pixels: no mask is needed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import World, neighbours


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of a group of ranks (Ioffe and Szegedy 2015, arXiv:1502.03167).

    In training it exchanges each channel's mean and variance forward and two sums backward, in one message
    each. Every rank must hold equally many values. It takes the place, the parameters and the buffers of
    another norm; timm's, which end with dropout and an activation, keep both.

    Args:
        norm: the norm that it replaces, with a momentum.
        group: the ranks; None: all.
    """

    def __init__(self, norm: _BatchNorm, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked, self.training = norm.num_batches_tracked, norm.training
        self.group = group
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            self.drop, self.act = norm.drop, norm.act

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected N x C x ..., got {input.ndim} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        """N x C x ..., normalised; then dropout and activation where the replaced norm had them."""
        self._check_input_dim(x)
        if self.training:
            momentum = 0.0 if self.momentum is None else self.momentum
            statistics = (self.running_mean, self.running_var, momentum, self.eps)
            x = _Normalise.apply(x, self.weight, self.bias, *statistics, self.group)
        else:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return self.act(self.drop(x))  # type: ignore[no-any-return]


def synchronised(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """The module with every BatchNorm in it replaced by one over the ranks of a group (None: all).

    Names in state dicts stay.
    """
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm(module, group)
    for name, child in module.named_children():
        setattr(module, name, synchronised(child, group))
    return module


def synchronise_batchnorm(distiller: Distiller, ranks: int, world: World) -> None:
    """Let the BatchNorms of the student and of the losses' layers take their statistics over several ranks.

    Args:
        distiller: holds them.
        ranks: how many share them: those of a node, say. They divide the world.
        world: this process among its peers.

    A discriminator keeps each rank's own: a gradient penalty differentiates twice through them, which the
    synchronised ones do not support. Their running statistics are averaged before they are used.
    """
    if ranks == 1:
        return
    group = None if ranks == world.size or world.pretended else neighbours(ranks)
    parts: list[tuple[nn.Module, str, nn.Module]] = [(distiller, "student", distiller.student)]
    for _, loss in distiller.named_losses():
        parts += [(loss, n, part) for n, part in loss.named_children() if part is not loss.discriminator]
    for owner, name, part in parts:
        setattr(owner, name, synchronised(part, group))


def count_on_host(*modules: nn.Module | None) -> None:
    """Keep the numbers of batches that BatchNorms count in main memory, where counting launches nothing.

    Nothing reads them in training: every norm here has a momentum.
    """
    for module in modules:
        for norm in module.modules() if module is not None else ():
            if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.cpu()


class _Normalise(torch.autograd.Function):
    """Normalisation by the statistics of a group's ranks; on CUDA by the kernels of torch's SyncBatchNorm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        count = x.numel() // x.shape[1]
        local = _statistics(x, eps)
        every = local.new_empty(2 * dist.get_world_size(group), x.shape[1])
        dist.all_gather_into_tensor(every, local, group=group)
        means, seconds = every[0::2], every[1::2]  # the kernels take rows at a distance
        ctx.counts, ctx.group = (len(means), count), group
        if x.is_cuda:
            counts = _counts(*ctx.counts, local.dtype, x.device)
            mean, inverse = torch.batch_norm_gather_stats_with_counts(
                x, means, seconds, running_mean, running_var, momentum, eps, counts
            )
            out = torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)
        else:
            mean, inverse = _joined(means, seconds, count, running_mean, running_var, momentum, eps)
            scale = inverse if weight is None else inverse * weight
            out = (x - _wide(mean, x)) * _wide(scale, x)
            out = (out if bias is None else out + _wide(bias, x)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        grad = grads[0]
        if not grad.is_contiguous(memory_format=torch.channels_last):
            grad = grad.contiguous()
        if x.is_cuda:
            reduced = torch.batch_norm_backward_reduce(grad, x, mean, inverse, weight, True, True, True)
            total, along, grad_weight, grad_bias = reduced
        else:
            axes = [0, *range(2, x.ndim)]
            total, along = grad.sum(axes), (grad * (x - _wide(mean, x))).sum(axes)
            grad_weight, grad_bias = along * inverse, total
        sums = torch.stack((total, along))
        dist.all_reduce(sums, group=ctx.group)
        if x.is_cuda:
            out = torch.batch_norm_backward_elemt(
                grad, x, mean, inverse, weight, sums[0], sums[1], _counts(*ctx.counts, torch.int32, x.device)
            )
        else:
            total, along = sums / math.prod(ctx.counts)
            centred = (x - _wide(mean, x)) * _wide(along * inverse.square(), x)
            scale = inverse if weight is None else inverse * weight
            out = ((grad - _wide(total, x) - centred) * _wide(scale, x)).to(x.dtype)
        affine = (None, None) if weight is None else (grad_weight, grad_bias)
        return (out, *affine, None, None, None, None, None)


@functools.lru_cache(maxsize=256)
def _counts(ranks: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How many values of a channel each rank holds."""
    return torch.full((ranks,), count, dtype=dtype, device=device)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """C values, so that they apply to the channels of N x C x ..."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _statistics(x: Tensor, eps: float) -> Tensor:
    """2 x C: the rank's means and, as the next step wants them, inverse deviations (CUDA) or variances."""
    if x.is_cuda:
        return torch.stack(torch.batch_norm_stats(x, eps))
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    return torch.stack((mean, variance))


def _joined(
    means: Tensor,
    variances: Tensor,
    count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation over the ranks; the running statistics are updated."""
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    if running_mean is not None and running_var is not None:
        total = count * len(means)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (total / max(1, total - 1)), momentum)
    return mean, torch.rsqrt(variance + eps)
