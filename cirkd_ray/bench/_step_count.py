"""What a piece of work asks of a device: operations, floating-point operations, bytes, launches and waits."""

from __future__ import annotations

import importlib
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
from torch.utils.flop_counter import flop_registry

from cirkd_ray.bench._step_devices import Peak
from cirkd_ray.errors import ConfigError

COUNTERS = "CIRKD_DEVICE_COUNTERS"
"""MODULE:FUNCTION of a device that counts and computes nothing; it returns running totals with `launch`."""
_IDLE = {
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
    *("detach", "lift_fresh", "set_", "alias", "_unsafe_view"),
}
"""Operators that only make or name memory."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is active, in the forward and the backward pass.

    Attributes:
        operations: those that compute or copy.
        flops: of convolutions, matrix products and attention, by the type of their first operand.
        bytes: of all operands and results, by type.
        model_seconds: the sum over operations of the longer of arithmetic and memory traffic, where the
            device's peaks are known.
    """

    def __init__(self, peak: Peak | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = peak
        self.operations = 0
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
        moved = 0
        for x in tensors:
            held = min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
            self.bytes[_name(x.dtype)] += held
            moved += held
        formula = flop_registry.get(func._overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
        kind = _name(tensors[0].dtype)
        if flops:
            self.flops[kind] += flops
        if self.peak is not None:
            self.model_seconds += self.peak.seconds(kind, flops, moved)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
