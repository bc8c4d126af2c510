"""What a piece of work asks of a device: operations, floating-point operations, bytes, launches and waits."""

from __future__ import annotations

import importlib
import math
import os
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from cirkd_ray.bench._step_devices import Peak
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.attention import fused_kl

COUNTERS = "CIRKD_DEVICE_COUNTERS"
"""MODULE:FUNCTION of a device that counts and computes nothing; it returns running totals with `launch`."""
_IDLE = {
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
    *("detach", "lift_fresh", "set_", "alias", "_unsafe_view"),
}
"""Operators that only make or name memory."""
_ROWS = {"index_select", "gather", "index_copy_"}
"""Operators that read or write some rows of their first operand, as many as their smallest one has."""
_STAND_INS: list[torch.library.Library] = []
"""They hold as long as these objects live."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is active, in the forward and the backward pass.

    Attributes:
        operations: those that compute or copy.
        fused: those of them that are relations on fused kernels, which are compiled.
        flops: of convolutions, matrix products and attention, by the type of their first operand, or "tf32"
            where a device multiplies float32 so.
        bytes: of all operands and results, by type.
        model_seconds: the sum over operations of the longer of arithmetic and memory traffic, where the
            device's peaks are known.
    """

    def __init__(self, peak: Peak | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = peak
        self.operations = self.fused = 0
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.model_seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do it, and count it."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func._overloadpacket.__name__ not in _IDLE:
            self._count(func, args, kwargs or {}, out)
        return out

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if not tensors:
            return
        self.operations += 1
        fused = func is torch.ops.cirkd_ray.fused_kl.default
        self.fused += fused
        moved, rows = 0, func._overloadpacket.__name__ in _ROWS
        touched = min(x.nbytes for x in tensors if x.dtype == tensors[0].dtype) if rows else None
        for x in tensors:
            held = min(x.nbytes, x.untyped_storage().nbytes())
            if touched is not None and x.dtype == tensors[0].dtype:
                held = touched
            self.bytes[_name(x.dtype)] += held
            moved += held
        formula = flop_registry.get(func._overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
        kind = _name(tensors[0].dtype)
        if kind == "float32" and tensors[0].is_cuda and _takes_tf32(func):
            kind = "tf32"
        if fused and args[7] is not None:  # rounded
            kind = "float16"
        if flops:
            self.flops[kind] += flops
        if self.peak is not None:
            self.model_seconds += self.peak.seconds(kind, flops, moved)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _takes_tf32(func: Any) -> bool:
    """Whether torch's settings let this product of float32 run in TF32."""
    if "convolution" in func._overloadpacket.__name__:
        return torch.backends.cudnn.allow_tf32
    return torch.get_float32_matmul_precision() != "highest"


@register_flop_formula(torch.ops.cirkd_ray.fused_kl)
def _fused_flops(q_s: Any, q_t: Any, k_s: Any, k_t: Any, *rest: Any, **_: Any) -> int:
    """Each attention multiplies, a similarity, the channels of queries and those of values."""
    student, teacher, need_k = q_s[-1], q_t[-1], rest[5]
    widths = [teacher + student, 2 * student]
    if k_t is not None:
        widths.append(2 * teacher)
    if need_k:
        widths += [2 * student, teacher + student]
    return int(2 * math.prod(k_s[:3]) * q_s[1] * sum(widths))


@register_flop_formula([torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu])
def _joined_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Those of the convolution."""
    return conv_flop_count(x, weight, out_shape)


def stand_in() -> None:
    """A device that only counts has no compiler and no cuDNN: what these do takes memory alone, and of cuDNN
    the launch of one convolution."""

    @fused_kl.register_kernel("cuda")
    def nothing(q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor | None, weights: Tensor, *_: Any) -> Any:
        return weights.new_empty(()), torch.empty_like(q_s), torch.empty_like(k_s)

    def convolution(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        stride, padding, dilation, groups = rest[-4:]
        return torch.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)

    if not _STAND_INS:
        _STAND_INS.append(torch.library.Library("aten", "IMPL"))  # type: ignore[no-untyped-call]
        for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
            _STAND_INS[0].impl(name, convolution, "CUDA")  # type: ignore[no-untyped-call]


def device_counters() -> Callable[[], Mapping[str, int]] | None:
    """The running totals of a device that counts, where the environment names them.

    Raises:
        ConfigError: there is no such function.
    """
    place = os.environ.get(COUNTERS)
    if not place:
        return None
    module, _, name = place.partition(":")
    try:
        found: Callable[[], Mapping[str, int]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{COUNTERS}: {place!r} is no MODULE:FUNCTION ({error})") from None
    return found


def launches(work: Callable[[], object], device: torch.device) -> tuple[int, str]:
    """How often `work` asks the device for something, and what was counted."""
    counters = device_counters()
    if counters is not None:
        before = counters()["launch"]
        work()
        return counters()["launch"] - before, "launches"
    if device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            work()
            torch.cuda.synchronize(device)
        events = [event for event in found.events() or () if event.name.startswith(_LAUNCHES)]
        return len(events), "launches"
    with Tally() as tally:
        work()
    return tally.operations, "operations"


@contextmanager
def host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """The lines at which the host waits for a CUDA device, with how often; on CPUs there are none."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return

    def show(message: Any, *rest: Any, **more: Any) -> None:
        if "synchroniz" in str(message):
            stack = [frame for frame in traceback.extract_stack() if "cirkd_ray" in frame.filename]
            ours = [frame for frame in stack if "/bench/" not in frame.filename]
            last = ours[-1] if ours else None
            found["?" if last is None else f"{last.filename.rpartition('cirkd_ray/')[2]}:{last.lineno}"] += 1

    with warnings.catch_warnings():
        torch.cuda.set_sync_debug_mode("warn")  # says itself, once, that it is new
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def as_dict(counts: Mapping[str, int]) -> dict[str, int]:
    """Sorted by name."""
    return dict(defaultdict(int, sorted(counts.items())))
