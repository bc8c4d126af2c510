"""Ranks, and the few things that they must agree on. Without a process group everything is a no-op."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.queues import ClassQueue
from cirkd_ray.train.distiller import Distiller


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pretended: bool = False
    """Its peers are pretended, to count what one rank does: gradients are not exchanged."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> World:
        """The world of the running process group, or a world of one."""
        device = torch.device(device)
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)


@dataclass(frozen=True)
class Exchange:
    """How ranks exchange gradients, as DDP takes it.

    Attributes:
        bucket_cap_mb: MiB of gradients at a time; None: torch's own.
        static_graph: each step trains the same parameters.
        gradient_as_bucket_view: gradients lie in the buckets.
        compression: "none" or "bf16".
    """

    bucket_cap_mb: float | None = None
    static_graph: bool = False
    gradient_as_bucket_view: bool = True
    compression: str = "none"

    @classmethod
    def of(cls, spec: RunSpec) -> Exchange:
        """A recipe's."""
        cluster = spec.cluster
        return cls(
            cluster.bucket_cap_mb,
            cluster.static_graph,
            cluster.gradient_as_bucket_view,
            spec.train.gradient_compression,
        )


def collective_timeout(storage_timeout: float) -> timedelta:
    """How long ranks wait for one of them, which may wait for storage: as long as that, and half an hour."""
    return timedelta(seconds=storage_timeout + 1800)


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def broadcast_object(value: Any, world: World, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's value, on every rank; through a `group` of all ranks on the CPU, if one is given."""
    if world.size == 1:
        return value
    box, on_gpu = [value], group is None and world.device.type == "cuda"
    dist.broadcast_object_list(box, src=0, group=group, device=world.device if on_gpu else None)
    return box[0]


def broadcast_text(text: str, world: World) -> str:
    """Rank 0's text, on every rank."""
    return str(broadcast_object(text, world))


def mean_over_ranks(values: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """The mean over ranks of scalars; one transfer to the host for all of them."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().to(torch.float64) for value in values.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
        stacked = stacked / world.size
    return dict(zip(values, stacked.tolist(), strict=True))


def minimum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Elementwise minimum over ranks."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.MIN)
    return values


def over_ranks(value: Tensor, world: World) -> Tensor:
    """A scalar's values on all ranks, on the CPU."""
    values = torch.zeros(world.size, dtype=value.dtype, device=value.device)
    values[world.rank] = value.detach()
    if world.size > 1:
        dist.all_reduce(values)
    return values.cpu()


def average_batchnorm_statistics(module: nn.Module | None, world: World) -> None:
    """Replace the running statistics of every BatchNorm by their mean over ranks, in one message.

    Where BatchNorm is not synchronised (CPU) the ranks' running statistics drift apart; nothing in training
    reads them, so it is enough to agree before they are used: at validation and at a checkpoint.
    """
    if world.size == 1 or module is None:
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var) if isinstance(b, Tensor)]
    if not buffers:
        return
    flat = torch.cat([b.detach().reshape(-1) for b in buffers])
    dist.all_reduce(flat)
    _spread(flat / world.size, buffers)


def parallel(
    distiller: Distiller, world: World, exchange: Exchange | None = None
) -> Distiller | DistributedDataParallel:
    """The distiller, or DDP over it where there are several ranks; no buffer is broadcast."""
    if world.size == 1 or world.pretended:
        return distiller
    return exchanging(distiller, world, exchange or Exchange())


def exchanging(distiller: Distiller, world: World, exchange: Exchange) -> DistributedDataParallel:
    """DDP over the distiller, in a process group of any size."""
    known = inspect.signature(DistributedDataParallel).parameters
    renamed = "forward_sync_buffers"  # in torch 2.15
    options: dict[str, Any] = {renamed if renamed in known else "broadcast_buffers": False}
    # Each rank has its own part of a sharded queue: the first one's is not to be copied to the others.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        distiller, _queues(distiller)
    )
    found = DistributedDataParallel(
        distiller,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        **options,
        bucket_cap_mb=exchange.bucket_cap_mb,
        static_graph=exchange.static_graph,
        gradient_as_bucket_view=exchange.gradient_as_bucket_view,
        # Without a weight the auxiliary head gets no gradient, which DDP has to be told.
        find_unused_parameters=distiller.task.aux_weight == 0 or distiller.task.weight == 0,
    )
    if exchange.compression == "bf16":
        found.register_comm_hook(None, bf16_compress_hook)
    return found


def _queues(distiller: Distiller) -> list[str]:
    """Names of the buffers of queues: each rank has its own, or the same by construction."""
    queues = [(name, m) for name, m in distiller.named_modules() if isinstance(m, ClassQueue)]
    return [f"{name}.{buffer}" for name, queue in queues for buffer, _ in queue.named_buffers()]


def check_batchnorm_ranks(spec: RunSpec, workers: int, on_gpu: bool) -> None:
    """Require that workers can be split into the groups that synchronise BatchNorm, where these are used.

    Raises:
        ConfigError: they cannot.
    """
    wanted = spec.train.batchnorm_ranks
    if wanted is None or not on_gpu or not spec.train.sync_batchnorm or workers == 1:
        return
    if workers % wanted:
        raise ConfigError(
            f"train.batchnorm_ranks: {workers} workers do not split into groups of {wanted}; choose a "
            "divisor of cluster.workers, or null for one group of all"
        )


def neighbours(ranks: int) -> dist.ProcessGroup:
    """The group of so many consecutive ranks that this one is in; every rank calls it, alike."""
    world = dist.group.WORLD
    if _GROUPS.get("of") is not world:  # of a process group that is no more
        _GROUPS.clear()
        _GROUPS["of"] = world
    if ranks not in _GROUPS:
        _GROUPS[ranks] = dist.new_subgroups(ranks)[0]
    found: dist.ProcessGroup = _GROUPS[ranks]
    return found


_GROUPS: dict[Any, Any] = {}
"""Those that were made, by their size: each takes buffers of the device."""


def average_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """Mean over ranks of the gradients of parameters that no DDP module holds."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world.size == 1 or not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    _spread(flat / world.size, gradients)


def _spread(flat: Tensor, targets: list[Tensor]) -> None:
    """Copy the pieces of a flat tensor back to where they came from."""
    for target, piece in zip(targets, torch.split(flat, [t.numel() for t in targets]), strict=True):
        target.copy_(piece.view_as(target))
