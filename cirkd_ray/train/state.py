"""All that a checkpoint holds of a run's objects, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor, nn

from cirkd_ray.errors import CheckpointError
from cirkd_ray.losses.queues import ClassQueue
from cirkd_ray.remote.address import is_url
from cirkd_ray.remote.copies import address, copy_of
from cirkd_ray.remote.mirror import soon
from cirkd_ray.remote.reading import fetch_checkpoint
from cirkd_ray.train.build import Run
from cirkd_ray.train.checkpoint import MANIFEST, none_is_whole
from cirkd_ray.train.distributed import World, broadcast_text
from cirkd_ray.train.optim import load_optimizer


def whole_queues(run: Run) -> dict[str, Tensor]:
    """Name -> buffer of the queues that ranks keep in parts, on the first rank; every rank calls it."""
    parts = [(n, m) for n, m in run.step.distiller.losses.named_modules() if _in_parts(m)]
    return {f"{name}.{key}": value for name, queue in parts for key, value in queue.whole().items()}


def _in_parts(module: nn.Module) -> TypeGuard[ClassQueue]:
    return isinstance(module, ClassQueue) and module.parts > 1


def state_of(run: Run, queues: Mapping[str, Tensor]) -> dict[str, Any]:
    """Student, the losses' layers, queues and discriminators, optimisers, scaler, average and recipe.

    Args:
        run: the run.
        queues: of `whole_queues`.

    Random generators are not in it: every random choice is a function of (seed, step, rank).
    """
    step = run.step
    discriminators = {name: found.state_dict() for name, found in step.discriminator_optimizers.items()}
    return {
        "student": run.student.state_dict(),
        "losses": {**step.distiller.losses.state_dict(), **queues},
        "optimizer": step.optimizer.state_dict(),
        "opponents": discriminators,  # an older name for them, which stays: checkpoints have it
        "scaler": step.update.scaler.state_dict(),
        "average": None if step.average is None else step.average.state_dict(),
        "spec": run.spec.to_dict(),
    }


def load_state(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """Put a checkpoint's state into the run's objects; returns what else was in the checkpoint.

    Raises:
        CheckpointError: it is of another network, loss or optimiser.
    """
    step, state = run.step, dict(state)
    try:
        run.student.load_state_dict(state.pop("student"))
        step.distiller.losses.load_state_dict(state.pop("losses"))
        load_optimizer(step.optimizer, state.pop("optimizer"))
        for name, found in state.pop("opponents").items():
            load_optimizer(step.discriminator_optimizers[name], found)
        step.update.scaler.load_state_dict(state.pop("scaler"))
        average = state.pop("average")
        if (average is None) != (step.average is None):
            raise KeyError("train.ema is set in only one of the two")
        if step.average is not None:
            step.average.load_state_dict(average)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        detail = reason[1].strip() if len(reason) > 1 else reason[0]
        raise CheckpointError(
            f"checkpoint: is of another recipe ({detail}); start a new run instead"
        ) from None
    state.pop("spec")
    return state


def shared_checkpoint(path: Path | None, world: World, timeout: float) -> Path | None:
    """A checkpoint that the main rank has chosen, where each rank reads it; every rank takes part.

    In a run behind a URL, ranks on other machines fetch it as soon as it is uploaded.

    Args:
        path: of the main rank; None for none.
        timeout: seconds to wait for that.

    Raises:
        TransientError: it was not uploaded in time.
    """
    told = ""
    if world.is_main and path is not None:
        manifest = path / MANIFEST
        told = json.dumps([address(path), manifest.read_text() if manifest.is_file() else ""])
        soon(path.parent.parent)
    told = broadcast_text(told, world)
    if world.is_main or not told:
        return path
    place, text = json.loads(told)
    return fetch_checkpoint(place, text, timeout) if is_url(place) and text else copy_of(place)


def refuse_damaged(folder: Path, world: World) -> None:
    """Do not start over in silence; every rank takes part.

    Raises:
        CheckpointError: on all ranks, where there are checkpoints but none is whole.
    """
    problem = broadcast_text((none_is_whole(folder) or "") if world.is_main else "", world)
    if problem:
        raise CheckpointError(f"{folder}: {problem}")
