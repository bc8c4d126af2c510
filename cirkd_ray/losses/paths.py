"""On which kernels, and in which arithmetic, relations are computed.

On a CUDA device the relational KL runs on fused attention kernels (`attention.py`) or in tiles
(`relational.py`), with the same values but for rounding. Elsewhere it runs in tiles of float32.

Rounding the unit vectors moves loss and gradient, at temperature 0.1 and relative to float64 (gradient: the
root of the mean square), by at most

    student                          TF32, fp16: loss, gradient     bf16: loss, gradient
    another network than its teacher       2e-5, 1e-3                     1e-4, 8e-3
    near its teacher                       5e-5, 4e-3                     2e-4, 3e-2

A student near its teacher has a small loss, of which the same rounding is a larger share. With what the fused
kernels round beside (`attention.py`), fp16 stays within the bounds of bf16 in the first line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cirkd_ray.device import quickest
from cirkd_ray.losses.attention import WIDEST, Relation
from cirkd_ray.losses.reduce import rank_and_world

LOG = logging.getLogger(__name__)
SAMPLE = 4096
"""Rows and keys on which both paths are compared."""
LARGEST_ERRORS = {"fp32": (1e-5, 1e-4), "tf32": (1e-4, 5e-3), "fp16": (3e-4, 1e-2), "bf16": (5e-4, 2e-2)}
"""Relative differences of loss and gradient from tiles that a fused path may have: those of its rounding,
with room. They are for unit vectors drawn at random, whose loss is large."""

Compute = Callable[[Relation], Tensor]
"""The value of a relation, differentiable."""


@dataclass(eq=False)
class Relations:
    """The settings `train.relations_path` and `train.relations`, and what was found on this device.

    Args:
        path: `auto` compares both paths on the first relation of its kind and takes the better one;
            `fused` and `tiles` force one. Heads wider than 256 channels take tiles always.
        precision: of the products. `auto` is fp16 on the fused path and tf32 in tiles, fp32 where the run
            is deterministic. Tiles multiply in TF32 what fp16 or bf16 asks for, the latter after rounding
            the vectors; TF32 has the mantissa of fp16. float64 is left as it is, in tiles.
        deterministic: of the run. `auto` is then tiles, as a comparison by time may end another way.
    """

    path: Literal["auto", "fused", "tiles"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    deterministic: bool = False
    chosen: dict[tuple[object, ...], bool] = field(default_factory=dict, repr=False)

    def is_fused(self, relation: Relation, fused: Compute, tiles: Compute) -> bool:
        """Whether the fused path computes this relation; compares both the first time, which waits."""
        if relation.q_s.device.type != "cuda" or relation.q_s.dtype == torch.float64:
            return False
        if self.path == "tiles" or relation.width > WIDEST:
            return False
        if self.path == "fused":
            return True
        if self.deterministic:
            return False
        key = (
            relation.q_s.shape[-1],
            relation.q_t.shape[-1],
            relation.k_t is None,
            relation.k_s.requires_grad,
        )
        if key not in self.chosen:
            self.chosen[key] = self._compare(relation.sample(SAMPLE), fused, tiles)
        return self.chosen[key]

    def arithmetic(self, device: torch.device, fused: bool) -> Literal["fp32", "tf32", "fp16", "bf16"]:
        """What `precision` means on that device and path."""
        if device.type != "cuda":
            return "fp32"
        if self.precision != "auto":
            return self.precision
        if self.deterministic:
            return "fp32"
        return "fp16" if fused else "tf32"

    def _compare(self, sample: Relation, fused: Compute, tiles: Compute) -> bool:
        """Whether the fused path is right and faster, by all ranks alike."""
        bounds = LARGEST_ERRORS[self.arithmetic(sample.q_s.device, True)]
        found = compare(sample, fused, tiles, bounds)
        rank, world = rank_and_world()
        if world > 1:
            agreed = torch.tensor(float(found.fused), device=sample.q_s.device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            found = found._replace(fused=bool(agreed.item()))
        if rank == 0:
            width = f"{sample.q_s.shape[-1]}/{sample.q_t.shape[-1]} channels"
            LOG.warning("relations of %s: %s (%s)", width, "fused" if found.fused else "tiles", found.why)
        return found.fused


AUTOMATIC = Relations()
"""Of callers that give no settings."""


class Finding(NamedTuple):
    """The outcome of a comparison."""

    fused: bool
    why: str


def compare(sample: Relation, fused: Compute, tiles: Compute, bounds: tuple[float, float]) -> Finding:
    """Run both paths on a sample: a fused path that fails, is wrong or is slower is not taken.

    Args:
        bounds: largest relative difference of the loss and of the gradients (by their norms).
    """
    try:
        value, gradients = _differentiated(fused, sample)
    except Exception as error:  # a compiler or driver that refuses must not end a run that tiles can do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(False, f"the fused kernels failed: {reason}")
    expected, wanted = _differentiated(tiles, sample)
    off = _relative(value, expected), max(map(_relative, gradients, wanted), default=0.0)
    errors = f"loss {off[0]:.0e} and gradient {off[1]:.0e} apart"
    if not (off[0] <= bounds[0] and off[1] <= bounds[1]):  # false for NaN, too
        return Finding(
            False, f"the fused kernels are {errors}, more than {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    quick, slow = (quickest(partial(_differentiated, f, sample), sample.q_s.device) for f in (fused, tiles))
    return Finding(quick < slow, f"{slow / quick:.1f} times as fast fused, {errors}")


def _differentiated(compute: Compute, sample: Relation) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value and the gradients of all that requires one."""
    with torch.enable_grad():
        value = compute(sample)
        leaves = [x for x in (sample.q_s, sample.k_s) if x.requires_grad]
        return value.detach(), torch.autograd.grad(value, leaves)


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm wanted."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


@contextmanager
def products(arithmetic: str, device: torch.device) -> Iterator[None]:
    """float32 products on CUDA in TF32 where `arithmetic` is not fp32, exact otherwise."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if arithmetic == "fp32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
