"""What a run takes on a disk, known before it starts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import free_bytes, size_text
from cirkd_ray.losses import DistillationLoss

OTHER_FILES = 16_000_000
"""Bytes for TensorBoard, lines of metrics and the exported student, about."""


def require_room(spec: RunSpec, each: int, folder: Path) -> None:
    """Look, before a run starts, whether its checkpoints fit the disk; one is in writing with those kept.

    Args:
        spec: the run's.
        each: bytes of a checkpoint.
        folder: the run's; the checkpoints that it holds already are taken into account.

    Raises:
        ConfigError: they do not fit, and `cluster.disk` is not `ignore`.
    """
    if spec.cluster.disk == "ignore":
        return
    count, free = spec.train.keep_checkpoints + 1, free_bytes(folder)
    there = sum(path.stat().st_size for path in folder.glob("checkpoints/*/state.pt"))
    need = max(0, count * each - there) + OTHER_FILES
    if need > free:
        raise ConfigError(
            f"cluster.disk: the run will take about {size_text(need)} ({count} checkpoints of "
            f"{size_text(each)} and its other files), but {size_text(free)} are free in {folder};\n"
            "free some, lower train.keep_checkpoints, choose another --out, or go on with "
            "--set cluster.disk=ignore"
        )


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


def require_free(folder: Path, count: int) -> None:
    """Look whether a disk has room for so many bytes, for those that cannot undo half of a write.

    Raises:
        OSError: as a write would raise it.
    """
    if free_bytes(folder) < count:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _bytes(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
