"""Which device, and in which arithmetic."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from cirkd_ray.errors import ConfigError

CUDA_BYTES = 2**29
"""What CUDA takes for a process beside its tensors, about."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def local_device(setting: str) -> torch.device:
    """The device of `cluster.device` in this process.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    return torch.device("cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu")


def share_cores(processes: int, loaders: int = 0) -> None:
    """Bound this process's threads to its share of the usable cores, unless OMP_NUM_THREADS says how many.

    Args:
        processes: that compute on this machine, this one among them.
        loaders: processes of each of them that load data, on a core each.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = int(usable_cpus() / processes) - loaders
        torch.set_num_threads(max(1, min(torch.get_num_threads(), share)))


CGROUP = Path("/sys/fs/cgroup")
"""Where the kernel tells a container its limits."""


def usable_cpus(cgroup: Path = CGROUP) -> float:
    """CPUs that this process may use: those that it may run on, or the container's share of time if less."""
    there = float(len(os.sched_getaffinity(0)))
    for quota, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (cgroup / quota).read_text().split()
            words += (cgroup / period).read_text().split() if period else []
            share = float(words[0]) / float(words[1])  # "max" is no number
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
        return min(there, share) if share > 0 else there
    return there


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Bytes that the container may use; None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroup / name).read_text())
        except (OSError, ValueError):
            continue
        return limit if limit < 2**60 else None  # how the first version says that there is none
    return None


def choose_precision(setting: str, device: torch.device) -> str:
    """`auto` is fp32 on CPUs; on CUDA it is bf16, and fp16 where the card would only emulate that.

    Raises:
        ConfigError: fp16 on a CPU, where it would need loss scaling that no CPU kernel supports well.
    """
    if setting == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision: fp16 needs a CUDA device; use fp32 or bf16 on CPUs")
    return setting


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of that precision; fp32 is no autocast."""
    enabled = precision != "fp32"
    dtype = DTYPES[precision] if enabled else None
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Arithmetic in the tensors' own types on the device of `x`; `meta` knows no autocast."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


@contextmanager
def without_autotuning() -> Iterator[None]:
    """Do not let cuDNN time its algorithms for each of the many sizes of whole images."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def quickest(work: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Seconds of the shortest of a few calls; waits for the device."""
    best = float("inf")
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def wait(device: torch.device) -> None:
    """Let the host wait until a CUDA device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler, active for fp16 only."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def share_of_gpu(total: int, gpus: float) -> int:
    """Bytes for the tensors of a process that takes so much of a GPU: its part without CUDA's own memory.

    Raises:
        ConfigError: the part is too small for anything else.
    """
    share = int(total * min(gpus, 1.0)) - CUDA_BYTES
    if share <= 0:
        raise ConfigError(
            f"cluster.gpus_per_worker: {gpus:g} of {total / 2**30:.3g} GiB is no more than CUDA itself takes "
            f"({CUDA_BYTES / 2**30:.3g} GiB a process); take a larger part"
        )
    return share


def bound_memory(device: torch.device, gpus: float) -> None:
    """Bound what this process takes of a GPU to its part, so that it starves nobody who shares it.

    Raises:
        ConfigError: as of `share_of_gpu`.
    """
    if device.type == "cuda" and gpus < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of_gpu(total, gpus) / total, device)


def available_bytes(device: torch.device, cgroup: Path = CGROUP) -> int | None:
    """Free bytes of the device (of the container, where there is one), or None where unknown or not needed.

    Args:
        device: the host's memory for `cpu`.
        cgroup: the folder of the container's limit, where there is one (cgroup v2).
    """
    if device.type == "meta":
        return None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        bound = torch.cuda.get_per_process_memory_fraction(device) * total
        return min(free, int(bound) - torch.cuda.memory_reserved(device))
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (int((cgroup / f).read_text()) for f in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # The kernel gives cached files up when memory is asked for. Not `file`: that counts /dev/shm, too.
        cached = int(stat["inactive_file"]) + int(stat["active_file"])
    except (OSError, KeyError, ValueError):  # no such limit
        return free
    return min(free, limit - used + cached)
