"""What checkpoints take on a disk, known before there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from cirkd_ray.config import RunSpec
from cirkd_ray.losses import DistillationLoss


def checkpoint_bytes(spec: RunSpec, student: nn.Module, losses: Mapping[str, DistillationLoss]) -> int:
    """Bytes of one checkpoint: weights, the losses' layers and queues, optimisers, the averaged student.

    Args:
        spec: the run's.
        student, losses: built on any device; `meta` will do.
    """
    weights = _bytes(student.state_dict().values())
    found = weights * (2 if spec.train.ema is not None else 1)
    found += sum(_bytes(loss.state_dict().values()) for loss in losses.values())
    trained: list[nn.Module] = [student, *losses.values()]
    discriminators = (loss.discriminator for loss in losses.values())
    apart = sum(_bytes(module.parameters()) for module in discriminators if module is not None)
    together = sum(_bytes(module.parameters()) for module in trained) - apart
    moments = 2 if spec.optim.name == "adamw" else int(spec.optim.momentum > 0)
    return int(found + moments * together + 2 * apart)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _bytes(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
