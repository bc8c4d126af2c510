"""Building blocks that several heads share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation, ReLU; N x C x H x W in and out, same size unless `stride` > 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in order."""
        return self.act(normalise(self.norm, self.conv(x)))  # type: ignore[no-any-return]


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, also where a batch of one image pooled to one pixel has no statistics of its own.

    Globally pooled maps (ASPP, PSP) of a single image hold one value a channel, from which no variance can be
    taken; plain batch normalisation then raises. Its running statistics are used instead. `SyncBatchNorm`
    counts the values of all ranks and is left alone.
    """
    single = x.shape[0] == 1 and x.shape[2] == 1 and x.shape[3] == 1
    if single and norm.training and isinstance(norm, nn.BatchNorm2d):
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    return norm(x)  # type: ignore[no-any-return]


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Bilinear resize of an N x C x h x w map to the height and width of `like`."""
    if not tracing() and x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=align_corners)


def tracing() -> bool:
    """Whether a graph for any image size is being recorded, which must not depend on the sizes at hand."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def adaptive_average_pool(x: Tensor, bins: int) -> Tensor:
    """N x C x bins x bins means of an N x C x h x w map, as `F.adaptive_avg_pool2d`.

    That operator cannot be exported for maps of any size, and its gradient on CUDA adds in no fixed order.
    There the same means are taken as two matrix products, in float32 at least.
    """
    deterministic = x.is_cuda and torch.are_deterministic_algorithms_enabled()
    if not tracing() and not deterministic:
        return F.adaptive_avg_pool2d(x, bins)
    return pool_by_products(x, bins)


def pool_by_products(x: Tensor, bins: int) -> Tensor:
    """`adaptive_average_pool` as two matrix products."""
    with torch.autocast(x.device.type, enabled=False) if not tracing() else nullcontext():
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        rows, columns = (_pooling_matrix(side, bins, precise) for side in x.shape[-2:])
        return (rows @ precise @ columns.transpose(0, 1)).to(x.dtype)


def _pooling_matrix(side: int, bins: int, like: Tensor) -> Tensor:
    """bins x side weights: bin i takes the mean from floor(i side / bins) to ceil((i + 1) side / bins)."""
    place = torch.arange(side, device=like.device)
    index = torch.arange(bins, device=like.device).unsqueeze(1)
    first, end = index * side // bins, ((index + 1) * side + bins - 1) // bins
    inside = ((place >= first) & (place < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class DeterministicBicubic(TorchFunctionMode):
    """While it is active, bicubic resizing is two matrix products, whose gradient adds in a fixed order.

    timm resizes position embeddings so; torch's own gradient of it has no deterministic form on CUDA.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, or what stands in for it."""
        kwargs = kwargs or {}
        if func is F.interpolate and kwargs.get("mode") == "bicubic" and kwargs.get("size") is not None:
            return bicubic_by_products(*args, **kwargs)
        return func(*args, **kwargs)


def bicubic_by_products(x: Tensor, *, size: Sequence[int], **options: Any) -> Tensor:
    """`F.interpolate(x, size, mode="bicubic")` of an N x C x h x w map as two matrix products."""
    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():  # what becomes of each row, and of each column, alone
            units = (torch.eye(side, dtype=x.dtype, device=x.device)[None, None] for side in x.shape[-2:])
            rows, columns = (
                F.interpolate(unit, size=(len(unit[0, 0]), end), **options)[0, 0]
                for unit, end in zip(units, size, strict=True)
            )
        return rows.transpose(0, 1) @ x @ columns


def deterministic_bicubic(images: Tensor) -> AbstractContextManager[object]:
    """`DeterministicBicubic` where it is needed for a gradient on the device of `images`."""
    needed = images.is_cuda and torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()
    return DeterministicBicubic() if needed and not torch.compiler.is_compiling() else nullcontext()


def init_convolutions(module: nn.Module) -> None:
    """He initialisation (fan out, ReLU) of convolutions, unit batch norms, and a small normal classifier.

    The classifier (a child named `classifier`) starts at N(0, 0.01), so that the first cross-entropy is close
    to log(number of classes).
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            if name.rsplit(".", 1)[-1] == "classifier":
                nn.init.normal_(child.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)


def init_transformer(module: nn.Module) -> None:
    """Initialise as MiT and its decoder are: linear layers truncated normal 0.02, others fan-out normal."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Conv2d):
            fan_out = child.kernel_size[0] * child.kernel_size[1] * child.out_channels // child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2.0 / fan_out))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
