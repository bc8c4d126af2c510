"""How relational losses are computed on a CUDA device: fused or in tiles, and in which arithmetic.

The settings are those of the process, as are torch's for matrix products: `configure` is called once a run.
With `auto`, the first use of each kind of relation compares both ways on made-up vectors, so that what is
chosen does not depend on the run's state, and takes the faster one of those that are exact enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.errors import ConfigError

Path = Literal["auto", "fused", "tiles"]
Precision = Literal["auto", "fp32", "tf32", "fp16", "bf16"]
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS = 4096
"""Queries, and keys, of the comparison."""
BOUNDS = {"fp32": (1e-5, 1e-3), "tf32": (1e-4, 5e-3), "fp16": (1e-4, 5e-3), "bf16": (1e-3, 3e-2)}
"""Largest differences that the fused way may have from tiles in float32 to be taken: of the loss, and of the
gradients, both relative to the largest value."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """See `configure`."""

    path: Path = "auto"
    precision: Precision = "auto"
    deterministic: bool = False


class Kind(NamedTuple):
    """What is compared once."""

    device: torch.device
    student: int
    teacher: int
    keys: bool


Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A way to compute a relation: G x M x C queries, G x S x N x C keys and G x M weights to the loss."""

_settings = Settings()
_chosen: dict[Kind, bool] = {}


def configure(
    device: torch.device, path: Path = "auto", precision: Precision = "auto", deterministic: bool = False
) -> None:
    """Set how this process computes relations on CUDA, and let other float32 products there use TF32.

    Args:
        device: the run's.
        path: `fused` (`attention.py`), `tiles` (`relational.py`), or `auto`: what is better.
        precision: of the products' factors; sums are float32. `auto` is fp16 where the attention is fused
            (unit vectors need no range, and fp16 has eight times the precision of bf16), else TF32, or
            float32 if deterministic. Tiles take TF32 for fp16 and bf16.
        deterministic: no TF32 for float32 products, and no choice by time.

    Raises:
        ConfigError: `fused` without a CUDA device.
    """
    global _settings
    if path == "fused" and device.type != "cuda":
        raise ConfigError(
            f"train.relations_path: fused needs a CUDA device, this run is on {device.type}; use auto"
        )
    _settings = Settings(path, precision, deterministic)
    _chosen.clear()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if deterministic else "high")


def fused_type(wide: torch.dtype) -> torch.dtype:
    """The type of the factors of fused products whose inputs are of type `wide`."""
    if wide == torch.float64:
        return wide
    precision = "fp16" if _settings.precision == "auto" else _settings.precision
    return HALF.get(precision, wide)


@contextmanager
def products(precision: str | None = None) -> Iterator[None]:
    """Float32 products in the chosen precision (or in `precision`), on CUDA."""
    precision = precision or _settings.precision
    if precision == "auto":
        precision = "fp32" if _settings.deterministic else "tf32"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def is_fused(kind: Kind, widths: tuple[int, int], fused: Run, tiles: Run) -> bool:
    """Whether a relation takes the fused way; compares both, once a kind, where nothing is forced.

    Args:
        kind: the device, the widths of student and teacher, and whether keys have gradients.
        widths: the narrowest and widest vectors that the fused way takes.
        fused, tiles: the two ways.
    """
    low, high = widths
    fits = min(kind.student, kind.teacher) >= low and max(kind.student, kind.teacher) <= high
    if kind.device.type != "cuda" or not fits or _settings.path == "tiles":
        return False
    if _settings.path == "fused":
        return True
    if kind not in _chosen:
        _chosen[kind] = compare(kind, fused, tiles)
    return _chosen[kind]


def compare(kind: Kind, fused: Run, tiles: Run) -> bool:
    """Whether the fused way is exact enough and, unless deterministic, the faster one; logs why."""
    name = f"relations of vectors of {kind.student} and {kind.teacher} numbers on {kind.device}"
    inputs = made_up(kind)
    try:
        found = _with_gradients(fused, inputs)
        seconds = _seconds(lambda: _with_gradients(fused, inputs), kind.device)
    except Exception as error:  # whatever a compiler or driver raises: tiles need neither
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("%s: in tiles, because fused attention fails here: %s", name, first)
        return False
    with products("fp32"):
        exact = _with_gradients(tiles, inputs)
    other = _seconds(lambda: _with_gradients(tiles, inputs), kind.device)
    value, gradients = errors(found, exact)
    precision = "fp16" if _settings.precision == "auto" else _settings.precision
    bounds = BOUNDS[precision]
    right = value <= bounds[0] and gradients <= bounds[1]  # false for NaN, too
    better = right and (_settings.deterministic or seconds <= other)
    log.info(
        "%s: %s (fused in %s %.2g ms, off by %.1g in value and %.1g in gradients; tiles %.2g ms); "
        "train.relations_path forces either",
        *(name, "fused attention" if better else "tiles", precision),
        *(seconds * 1e3, value, gradients, other * 1e3),
    )
    return better


def made_up(kind: Kind, tokens: int = TOKENS) -> tuple[Tensor, ...]:
    """Unit vectors of 19 classes for student and teacher, the same in every process, and their weights."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 19, (2 * tokens,), generator=generator)
    maps = []
    for width in (kind.student, kind.teacher):
        centres, noise = (torch.randn(n, width, generator=generator) for n in (19, 2 * tokens))
        maps.append(F.normalize(centres[classes] + noise, dim=1).to(kind.device))
    student, teacher = maps
    weights = torch.full((1, tokens), 1.0 / tokens, device=kind.device)
    queries = (x[None, :tokens] for x in (student, teacher))
    keys = (x[None, None, tokens:] for x in (student, teacher))
    return *(x.requires_grad_(i == 0) for i, x in enumerate(queries)), *(
        x.requires_grad_(i == 0 and kind.keys) for i, x in enumerate(keys)
    ), weights


def errors(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Largest relative errors of the loss and of its gradients; each list has the loss first."""
    each = [
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(found, exact, strict=True)
    ]
    return each[0], max(each[1:])


def _with_gradients(run: Run, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss, and its gradients with respect to what wants one."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        loss = run(*leaves)
        return [loss.detach(), *torch.autograd.grad(loss, [x for x in leaves if x.requires_grad])]


def _seconds(call: Callable[[], object], device: torch.device, repeat: int = 3) -> float:
    """Best time of a call on a CUDA device."""
    best = float("inf")
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()  # type: ignore[no-untyped-call]
        call()
        end.record()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        best = min(best, start.elapsed_time(end) / 1e3)  # type: ignore[no-untyped-call]
    return best


assert set(get_args(Precision)) == {"auto", *BOUNDS}
