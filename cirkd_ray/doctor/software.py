"""Packages, GPUs, their driver and NCCL."""

from __future__ import annotations

import importlib
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cirkd_ray import __version__
from cirkd_ray.doctor.checks import Finding, Level, Question
from cirkd_ray.errors import first_line

IMPORTED = {"torch": "torch", "torchvision": "torchvision", "ray": "ray", "timm": "timm"}
IMPORTED |= {"opencv-python-headless": "cv2", "pyarrow": "pyarrow"}
"""Packages with compiled parts, which may be there and not load, and how they are imported."""
SAME = ("python", "cirkd-ray", "ray", "torch")
"""Versions that must be equal on all nodes: what one writes, another reads."""
_MINOR = re.compile(r"\d+\.\d+")


def requirements() -> list[Requirement]:
    """What the package itself needs."""
    lines = metadata.requires("cirkd-ray") or []
    return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]


def versions(question: Question) -> dict[str, Any]:
    """Version of each package that is there, and why one that is cannot be imported."""
    found = {"python": platform.python_version(), "cirkd-ray": __version__}
    for requirement in requirements():
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
    broken = {}
    for name, module in IMPORTED.items():
        if name not in found:
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # a missing library, or parts built for another version
            broken[name] = f"{type(error).__name__}: {first_line(error)}"
    return {"versions": found, "broken": broken}


def judge_versions(value: Any, question: Question) -> Iterator[Finding]:
    """Missing, too old and broken packages."""
    found, broken = value["versions"], value["broken"]
    for requirement in requirements():
        have, wanted = found.get(requirement.name), _plain(requirement)
        if have is None:
            text = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(have, prereleases=True):
            text = f"{requirement.name} is {have}, {wanted} is needed"
        else:
            continue
        yield Finding("packages", Level.ERROR, text, f"pip install '{requirement}'")
    for name, reason in broken.items():
        beside = "torch torchvision" if name in ("torch", "torchvision") else name
        yield Finding(
            "packages",
            Level.ERROR,
            f"{name} {found[name]} cannot be imported ({reason})",
            f"pip install --upgrade --force-reinstall {beside}",
        )
    told = [f"{name} {found[name]}" for name in ("python", "cirkd-ray", *IMPORTED) if name in found]
    yield Finding("packages", Level.OK, ", ".join(told))


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def compare_versions(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Versions that differ between nodes."""
    nodes = {node: value["versions"] for node, value in values.items()}
    for name in dict.fromkeys(name for found in nodes.values() for name in found):
        have = {node: found.get(name, "none") for node, found in nodes.items()}
        if len(set(have.values())) == 1:
            continue
        usual = Counter(have.values()).most_common(1)[0][0]
        others = {node: version for node, version in have.items() if version != usual}
        told = ", ".join(f"{version} on {node}" for node, version in others.items())
        advice = f"pip install {name}=={usual}"
        if name == "python":
            advice = f"start Ray in an environment of Python {usual}"
        patch_only = name == "python" and len({_MINOR.match(v)[0] for v in have.values()}) == 1  # type: ignore[index]
        level = Level.ERROR if name in SAME and not patch_only else Level.WARNING
        yield Finding("packages", level, f"{name} is {told} and {usual} elsewhere", advice, tuple(others))


def gpus(question: Question, root: Path = Path("/")) -> dict[str, Any]:
    """The GPUs as torch sees them, their driver, and what a sum over NCCL does.

    Args:
        root: where the driver's files are looked for.
    """
    import torch

    told = root / "proc/driver/nvidia/version"
    version = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", told.read_text()) if told.is_file() else None
    found: dict[str, Any] = {
        "cuda": torch.version.cuda,
        "driver": version[1] if version else None,
        "device_files": len([*(root / "dev").glob("nvidia[0-9]*")]),
        "gpus": [],
        "nccl": None,
        "nccl_error": None,
    }
    if not torch.cuda.is_available():
        return found
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        native = torch.cuda.get_device_capability(number) >= (8, 0)
        name = torch.cuda.get_device_name(number)
        found["gpus"].append({"name": name, "free": free, "total": total, "bf16": native})
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    try:
        _sum_over_nccl()
    except Exception as error:
        found["nccl_error"] = first_line(error)
    return found


def _sum_over_nccl() -> None:
    """A group of this process alone adds up a number: the library loads and talks to the driver."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        dist.all_reduce(torch.ones(1, device="cuda"))
        torch.cuda.synchronize()
    finally:
        dist.destroy_process_group()


def judge_gpus(value: Any, question: Question) -> Iterator[Finding]:
    """GPUs that torch does not see, that others use, and NCCL."""
    if not value["gpus"]:
        yield _without_gpus(value)
        return
    for number, gpu in enumerate(value["gpus"]):
        if gpu["free"] < 0.8 * gpu["total"]:
            text = f"GPU {number} ({gpu['name']}) has {_gib(gpu['free'])} of {_gib(gpu['total'])} free"
            yield Finding("GPUs", Level.WARNING, text, "nvidia-smi   # names the processes that use it")
    if value["nccl_error"]:
        yield Finding("NCCL", Level.ERROR, value["nccl_error"], "NCCL_DEBUG=INFO cirkd doctor --local")
    else:
        yield Finding("NCCL", Level.OK, f"{value['nccl']}, a sum works")
    names = Counter(f"{gpu['name']} ({_gib(gpu['total'])})" for gpu in value["gpus"])
    told = ", ".join(f"{count} x {name}" for name, count in names.items())
    arithmetic = "bf16" if all(gpu["bf16"] for gpu in value["gpus"]) else "no bf16: runs take fp16"
    text = f"{told}; {arithmetic}; CUDA {value['cuda']}, driver {value['driver'] or 'unknown'}"
    yield Finding("GPUs", Level.OK, text)


def _without_gpus(value: Any) -> Finding:
    if value["driver"] is None:
        return Finding("GPUs", Level.OK, "none: runs train on the CPUs")
    if value["cuda"] is None:
        text = f"driver {value['driver']} is there, but this PyTorch is built without CUDA"
        return Finding("GPUs", Level.ERROR, text, "pip install --force-reinstall torch torchvision")
    if not value["device_files"]:
        text = f"driver {value['driver']} is there, but no GPU is given to this container"
        return Finding("GPUs", Level.ERROR, text, "docker run --gpus all ...")
    text = f"PyTorch sees no GPU with driver {value['driver']}, it is built for CUDA {value['cuda']}"
    return Finding("GPUs", Level.ERROR, text, "nvidia-smi   # a driver older than that CUDA is to be updated")


def compare_gpus(values: Mapping[str, Any]) -> Iterable[Finding]:
    """Kinds that a run's workers must have in common."""
    all_gpus = [gpu for value in values.values() for gpu in value["gpus"]]
    if len({gpu["bf16"] for gpu in all_gpus}) > 1:
        text = "some compute in bf16 and some do not: workers would choose different precisions"
        yield Finding("GPUs", Level.ERROR, text, "cirkd train ... --set train.precision=fp16")
    if len({value["nccl"] for value in values.values() if value["gpus"]}) > 1:
        text = ", ".join(f"{value['nccl']} on {node}" for node, value in values.items() if value["gpus"])
        yield Finding("NCCL", Level.ERROR, text, "pip install torch==VERSION   # the same on all nodes")


def _gib(count: int) -> str:
    return f"{count / 2**30:.0f} GiB"
