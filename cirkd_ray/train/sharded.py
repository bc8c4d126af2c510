"""A frozen teacher that does not fit one device: its weights are shared out to the ranks (FSDP2).

Each rank holds its part of every weight. A forward pass gathers the weights of one unit at a time, a block of
the encoder say, and lets them go after it. It is an exchange: all ranks have to run it equally often.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from cirkd_ray.device import autocast
from cirkd_ray.errors import ConfigError, first_line
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.distributed import World
from cirkd_ray.train.frozen import alike, sample_image
from cirkd_ray.types import SegmentationOutput

UNITS = 16
"""A unit has at most this part of the weights where modules can be split so: what a rank holds at a time."""
CLOSE = 0.1
"""Largest difference, relative to a map's largest value, that another device and 16 bits may make."""


@torch.no_grad()
def shard(teacher: SegmentationModel, world: World, precision: str) -> None:
    """Share a frozen network's weights out to the ranks, in place; every rank calls it.

    Args:
        teacher: in evaluation mode, on the CPU, alike on all ranks. It never is whole on the device.
        world: this process among its peers.
        precision: "fp32", "bf16" or "fp16" of the run.

    Raises:
        ConfigError: it computes something else, or nothing, when its weights are shared out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    image = sample_image(teacher).float()
    called, before = _called(teacher, image, precision)
    mesh = init_device_mesh(world.device.type, (world.size,))
    try:
        for unit in [*_units(teacher, called, _bytes(teacher) // UNITS)]:
            if unit is not teacher:
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        fully_shard(teacher, mesh=mesh, reshard_after_forward=True)
        there = image.to(world.device)
        with autocast(precision, world.device):
            after: SegmentationOutput = teacher(there)
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        raise _refused(teacher, first_line(error)) from error
    if not alike(before, after, CLOSE):
        raise _refused(teacher, "its maps are others then")


def _refused(teacher: SegmentationModel, why: str) -> ConfigError:
    return ConfigError(f"teacher.shard: {teacher.name} cannot be shared out ({why}); set teacher.shard=false")


def _called(
    teacher: SegmentationModel, image: torch.Tensor, precision: str
) -> tuple[set[nn.Module], SegmentationOutput]:
    """The modules that a forward pass calls, whose weights can be gathered then, and its output."""
    called: set[nn.Module] = set()
    handles = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in teacher.modules()]
    try:
        with autocast(precision, image.device):
            output: SegmentationOutput = teacher(image)
    finally:
        for handle in handles:
            handle.remove()
    return called, output


def _units(module: nn.Module, called: set[nn.Module], limit: int) -> Iterator[nn.Module]:
    """The largest called modules of up to `limit` bytes, or that have no smaller parts."""
    children = [child for child in module.children() if _bytes(child)]
    if module in called and (_bytes(module) <= limit or not children):
        yield module
        return
    for child in children:
        yield from _units(child, called, limit)


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
