"""A node's CPUs, memory, disk, shared memory and limits."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cirkd_ray.device import CGROUP, memory_limit, usable_cpus
from cirkd_ray.doctor.checks import Finding, Level, Question

GIB = 2**30
MIB = 2**20
SHM_ERROR, SHM_WARNING = 128 * MIB, GIB
"""Free bytes of /dev/shm. Containers get 64 MiB unless told otherwise: loader processes and NCCL then fail.
Ray keeps objects there, and in /tmp where it is small."""
FILES_ERROR, FILES_WARNING = 1024, 4096
"""Open files of a process; Ray's own processes hold thousands on a large cluster."""
DISK_ERROR, DISK_WARNING = GIB, 10 * GIB
TEMPORARY_WARNING = 5 * GIB
FULL = 0.95
"""Share of a disk in use from which Ray makes no more objects there (`local_fs_capacity_threshold`)."""
MEMORY_WARNING = 4 * GIB


Usage = Callable[[str], Any]
"""`shutil.disk_usage`."""


def shared_memory(
    question: Question, place: str = "/dev/shm", usage: Usage = shutil.disk_usage
) -> dict[str, int]:
    """Bytes of shared memory."""
    found = usage(place)
    return {"free": found.free, "total": found.total}


def judge_shared_memory(value: Any, question: Question) -> Iterator[Finding]:
    """Too little for loader processes, NCCL and Ray's objects."""
    level = Level.OK
    if value["free"] < SHM_WARNING:
        level = Level.ERROR if value["free"] < SHM_ERROR else Level.WARNING
    text = f"{size(value['free'])} of {size(value['total'])} free in /dev/shm"
    larger = value["total"] < 2 * SHM_WARNING
    advice = "docker run --shm-size=8g ...   # Kubernetes: an emptyDir of medium Memory at /dev/shm"
    if not larger:
        advice = "ls -l /dev/shm   # files of processes that were killed may be deleted"
    yield Finding("shared memory", level, text, advice if level else "")


def disk(question: Question, usage: Usage = shutil.disk_usage) -> dict[str, dict[str, int]]:
    """Bytes of the disks of temporary files and, if that is no URL, of runs."""
    places = {"temporary files": tempfile.gettempdir()}
    if "://" not in question.out:
        there = Path(question.out)
        places["--out"] = str(next(each for each in (there, *there.parents) if each.exists()))
    found = {name: usage(place) for name, place in places.items()}
    return {name: {"free": each.free, "total": each.total} for name, each in found.items()}


def judge_disk(value: Any, question: Question) -> Iterator[Finding]:
    """Too little room for checkpoints, or for Ray's own files."""
    for name, found in value.items():
        if not found["total"]:  # no disk: what writing there meets is said of --out
            continue
        free, total = found["free"], found["total"]
        least = DISK_WARNING if name == "--out" else TEMPORARY_WARNING
        level = Level.OK
        if free < least or (name != "--out" and free < (1 - FULL) * total):
            level = Level.ERROR if free < DISK_ERROR else Level.WARNING
        advice = "cirkd train ... --out DIR   # on a larger disk"
        if name != "--out":
            advice = "ray start --temp-dir=DIR   # on a larger disk; TMPDIR=DIR without Ray"
        yield Finding("disk", level, f"{name}: {size(free)} of {size(total)} free", advice if level else "")


def file_limit(
    question: Question, limit: Callable[[int], tuple[int, int]] = resource.getrlimit
) -> dict[str, int]:
    """Files that a process may hold open: now, and as it may ask for."""
    soft, hard = limit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": hard}


def judge_file_limit(value: Any, question: Question) -> Iterator[Finding]:
    """Too few for Ray."""
    soft = value["soft"]
    level = Level.OK
    if 0 <= soft < FILES_WARNING:  # -1: no limit
        level = Level.ERROR if soft < FILES_ERROR else Level.WARNING
    advice = "ulimit -n 65536   # before ray start; docker run --ulimit nofile=65536:65536"
    yield Finding(
        "file limit", level, f"{soft if soft >= 0 else 'no limit of'} open files", advice if level else ""
    )


def processors(question: Question, cgroup: Path = CGROUP) -> dict[str, Any]:
    """CPUs of the machine and those that this process may use, and what bounds its threads.

    `ray` is what Ray counts on this node, where it runs.
    """
    return {
        "machine": os.cpu_count() or 1,
        "usable": usable_cpus(cgroup),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "ray": None,
    }


def judge_processors(value: Any, question: Question) -> Iterator[Finding]:
    """Threads, loader processes and Ray's workers beyond the CPUs that there are."""
    usable, ray, threads = value["usable"], value["ray"], value["threads"]
    if ray is not None and ray > usable:
        text = f"Ray counts {ray:g} CPUs, {usable:g} may be used: workers share them"
        yield Finding("CPUs", Level.WARNING, text, f"ray start --num-cpus={max(1, int(usable))}")
    if threads and threads.isdigit() and int(threads) > max(1.0, usable) and ray is None:
        text = f"OMP_NUM_THREADS={threads}, {usable:g} CPUs may be used: threads wait for each other"
        yield Finding("CPUs", Level.WARNING, text, f"export OMP_NUM_THREADS={max(1, int(usable))}")
    if question.loaders and question.loaders + 1 > usable and (ray is None or ray > 0):
        text = f"a worker with data.workers={question.loaders} takes {question.loaders + 1} CPUs, "
        text += f"{usable:g} may be used"
        advice = f"cirkd train ... --set data.workers={max(0, int(usable) - 1)}"
        yield Finding("CPUs", Level.WARNING, text, advice)
    bound = f", {usable:g} may be used" if usable < value["machine"] else ""
    counted = f", Ray counts {ray:g}" if ray is not None else ""
    yield Finding("CPUs", Level.OK, f"{value['machine']}{bound}{counted}")


def memory(
    question: Question,
    cgroup: Path = CGROUP,
    meminfo: Path = Path("/proc/meminfo"),
) -> dict[str, Any]:
    """Bytes of the machine's memory, those that are free, and the container's limit.

    `ray` is what Ray would give away on this node, where it runs.
    """
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {"machine": total, "available": free, "limit": memory_limit(cgroup), "ray": None}


def judge_memory(value: Any, question: Question) -> Iterator[Finding]:
    """Too little, or less than Ray counts on."""
    limit, ray = value["limit"], value["ray"]
    there = min(value["machine"], limit or value["machine"])
    if ray is not None and ray > 1.05 * there:
        text = f"Ray counts on {size(ray)}, {size(there)} may be used: the kernel would kill workers"
        yield Finding("memory", Level.WARNING, text, f"ray start --memory={int(0.7 * there)}")
    level = Level.WARNING if min(there, value["available"]) < MEMORY_WARNING else Level.OK
    bound = f", limited to {size(limit)}" if limit and limit < value["machine"] else ""
    text = f"{size(value['available'])} of {size(value['machine'])} free{bound}"
    yield Finding(
        "memory", level, text, "cirkd train ... --set train.batch_size=N   # fewer" if level else ""
    )


def bytecode(question: Question) -> dict[str, bool]:
    """Whether Python may keep what it has compiled."""
    return {"kept": not os.environ.get("PYTHONDONTWRITEBYTECODE")}


def judge_bytecode(value: Any, question: Question) -> Iterator[Finding]:
    """Nothing is said where all is well."""
    if not value["kept"]:
        text = "PYTHONDONTWRITEBYTECODE is set: each Ray worker compiles torch anew, half a minute"
        yield Finding("bytecode", Level.WARNING, text, "unset PYTHONDONTWRITEBYTECODE")


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
