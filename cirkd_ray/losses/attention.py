"""Relational KL on fused attention kernels: the values of `relational.py`, and no similarity in memory.

With queries divided by the temperature, `A(q, k, v) = softmax(q k^T) v` and its log-sum-exp `lse`, a row has

    KL = q_t . A(q_t, k_t, k_t) - q_s . A(q_t, k_t, k_s) + lse_s - lse_t,
    dKL/dq_s = (A(q_s, k_s, k_s) - A(q_t, k_t, k_s)) / temperature,

and the gradient of the keys, `P_s^T (w q_s) - P_t^T (w q_s)`, is attention with queries and keys exchanged
and the bias `log w - lse` on each row, times the exponential of its own log-sum-exp. So value and gradients
take five calls of a kernel that others keep (`torch.nn.attention.flex_attention`), and two where the keys are
those of a queue.

Kernels of 16 bits take fp16, never bf16: unit vectors over a temperature fit in it, every such vector rounded
to bf16 is one of its numbers, and what the kernels return is rounded eight times as finely. Sums are
float32. Loss and gradient are then within 1e-4 and 8e-3 of float64 (relative, unit vectors at random,
temperature 0.1).

On a CPU the same code runs on the kernels' uncompiled form, which holds whole matrices: that is for tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

MASKED = -1e30
"""Added to the similarity of a key that does not count: finite, so that a row without valid keys is too."""
WIDEST = 256
"""Channels of the widest heads that the fused kernels take."""
NARROWEST = 16
"""Channels of the narrowest; fewer are padded with zeros, which change no product."""
SIGNATURES = 64
"""Kernels of different shapes and types that one process may compile."""
AT_ONCE = 2**26
"""Entries of a kernel's result: as many segments as it holds go in one call."""


class Relation(NamedTuple):
    """What is compared, in G groups of their own.

    Attributes:
        q_s, q_t: G x M x C_s and G x M x C_t queries.
        k_s: G x S x N x C_s: S segments with a softmax each.
        k_t: G x S x N x C_t, or None where they are `k_s`.
        weights: G x M row weights.
        mask: G x S x N bool, false for keys that do not count; None if all do.
    """

    q_s: Tensor
    q_t: Tensor
    k_s: Tensor
    k_t: Tensor | None
    weights: Tensor
    mask: Tensor | None

    @property
    def width(self) -> int:
        """Channels of the wider side."""
        return max(self.q_s.shape[-1], self.q_t.shape[-1])

    def sample(self, tokens: int) -> Relation:
        """Random unit vectors in the shapes of one group and segment, of at most so many rows and keys."""
        random = torch.Generator(self.q_s.device).manual_seed(0)

        def vectors(like: Tensor) -> Tensor:
            shape = (1,) * (like.ndim - 2) + (min(tokens, like.shape[-2]), like.shape[-1])
            dtype = torch.promote_types(like.dtype, torch.float32)
            drawn = torch.randn(shape, generator=random, dtype=dtype, device=like.device)
            return F.normalize(drawn, dim=-1)

        q_s, q_t, k_s = (vectors(x) for x in (self.q_s, self.q_t, self.k_s))
        k_t = None if self.k_t is None else vectors(self.k_t)
        weights = q_s.new_full(q_s.shape[:2], 1.0 / q_s.shape[1])
        return Relation(
            q_s.requires_grad_(), q_t, k_s.requires_grad_(self.k_s.requires_grad), k_t, weights, None
        )


def attention_kl(relation: Relation, scale: float, factor: float, rounding: torch.dtype | None) -> Tensor:
    """`factor * sum_i w_i sum_s KL_is` over all groups, on attention kernels.

    Args:
        relation: gradients flow to `q_s` and `k_s` where they require them.
        scale: 1 / temperature, multiplies the similarities.
        factor: multiplies the result.
        rounding: float16 or bfloat16, to which the vectors are rounded for kernels in float16; or None for
            kernels in the type of the inputs.

    Returns:
        A scalar in float32 (float64 for float64 inputs). Differentiable once.
    """
    return _AttentionKL.apply(*relation, scale, factor, rounding)  # type: ignore[no-any-return]


class _AttentionKL(torch.autograd.Function):
    """See `attention_kl`; forward keeps the two gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        q_s: Tensor,
        q_t: Tensor,
        k_s: Tensor,
        k_t: Tensor | None,
        weights: Tensor,
        mask: Tensor | None,
        scale: float,
        factor: float,
        rounding: torch.dtype | None,
    ) -> Tensor:
        dtype = torch.promote_types(q_s.dtype, torch.float32)
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        weights = weights.to(dtype) if factor == 1.0 else weights.to(dtype) * factor
        # A tensor, so that another temperature needs no other kernel.
        scale_ = torch.full((), scale, dtype=dtype, device=q_s.device)
        vectors = (None if x is None else x.detach() for x in (q_s, q_t, k_s, k_t))
        loss, *found = fused_kl(*vectors, weights, mask, scale_, rounding, *needs)
        ctx.save_for_backward(*(x if needed else None for x, needed in zip(found, needs, strict=True)))
        value: Tensor = loss
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = (None if t is None else t * grad for t in ctx.saved_tensors)
        return grad_q, None, grad_k, None, None, None, None, None, None


@torch.library.custom_op("cirkd_ray::fused_kl", mutates_args=())
def fused_kl(
    q_s: Tensor,
    q_t: Tensor,
    k_s: Tensor,
    k_t: Tensor | None,
    weights: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    rounding: torch.dtype | None,
    need_q: bool,
    need_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value and both gradients, as one operation of torch's: what counts or traces looks no further.

    Args:
        q_s, q_t, k_s, k_t, weights, mask: of a `Relation`, whose weights give the type of the value.
        scale: 1 / temperature, a scalar.
        rounding: see `attention_kl`.
        need_q, need_k: which gradients are asked for; one that is not comes without entries.
    """
    work = _compiled() if q_s.is_cuda else _fused_kl
    return work(q_s, q_t, k_s, k_t, weights, mask, scale, rounding, need_q, need_k)


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Compiled once a shape. Never uncompiled: that form would hold whole matrices."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, SIGNATURES)
    return torch.compile(_fused_kl, fullgraph=True, dynamic=False)


def _fused_kl(
    q_s: Tensor,
    q_t: Tensor,
    k_s: Tensor,
    k_t: Tensor | None,
    weights: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    rounding: torch.dtype | None,
    need_q: bool,
    need_k: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _Rows(_cast(q_s * scale, rounding), _cast(q_t * scale, rounding), weights)
    keys = _Keys(_cast(k_s, rounding), None if k_t is None else _cast(k_t, rounding), mask)
    width = max(1, AT_ONCE // max(1, rows.teacher.numel()))
    loss, grad_q = weights.new_zeros(()), weights.new_zeros(())
    grads_k: list[Tensor] = []
    for first in range(0, k_s.shape[1], width):
        some = keys.of(first, first + width)
        spread = rows.over(some.student.shape[1])
        value, d_rows, lse = _rows(spread, some)
        loss = loss + value
        if need_q:
            grad_q = grad_q + d_rows.sum(1)
        if need_k:
            grads_k.append(_columns(spread, some, lse))
    return (
        loss,
        (grad_q * (weights * scale).unsqueeze(-1))[..., : q_s.shape[-1]].to(q_s.dtype)
        if need_q
        else weights.new_empty(0),
        torch.cat(grads_k, 1)[..., : k_s.shape[-1]].to(k_s.dtype) if need_k else weights.new_empty(0),
    )


class _Rows(NamedTuple):
    """Scaled queries of both sides (G x ... x M x C) in the kernels' type, and the weights in full."""

    student: Tensor
    teacher: Tensor
    weights: Tensor

    def over(self, segments: int) -> _Rows:
        """The same for each of so many segments: G x S x M ..."""
        student, teacher, weights = (x.unsqueeze(1).expand(x.shape[0], segments, *x.shape[1:]) for x in self)
        return _Rows(student, teacher, weights)


class _Keys(NamedTuple):
    """Keys (G x S x N x C) of both sides in the kernels' type, and which count (G x S x N)."""

    student: Tensor
    teacher: Tensor | None
    mask: Tensor | None

    def of(self, first: int, end: int) -> _Keys:
        """Those of some segments."""
        teacher, mask = (None if x is None else x[:, first:end] for x in (self.teacher, self.mask))
        return _Keys(self.student[:, first:end], teacher, mask)

    def bias(self, like: Tensor) -> Tensor:
        """G x S x N: what a key adds to its similarities."""
        zeros = like.new_zeros(self.student.shape[:-1])
        return zeros if self.mask is None else zeros.masked_fill_(~self.mask, MASKED)


def _rows(rows: _Rows, keys: _Keys) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The value, the difference of attentions that is the queries' gradient (G x S x M x C_s), both `lse`."""
    bias = keys.bias(rows.weights)
    keys_t = keys.student if keys.teacher is None else keys.teacher
    by_teacher, lse_t = _attend(rows.teacher, keys_t, keys.student, bias)
    by_student, lse_s = _attend(rows.student, keys.student, keys.student, bias)
    by_teacher = by_teacher.to(bias.dtype)
    if keys.teacher is None:
        own = by_teacher
    else:
        own = _attend(rows.teacher, keys_t, keys_t, bias)[0].to(bias.dtype)
    # Products of mixed types are those of the wider one.
    kl = (rows.teacher * own).sum(-1) - (rows.student * by_teacher).sum(-1)
    kl += lse_s - lse_t
    if keys.mask is not None:  # rows without any key to compare with are worth 0
        none = ~keys.mask.any(2, keepdim=True)
        kl, lse_s, lse_t = (x.masked_fill(none, 0.0) for x in (kl, lse_s, lse_t))
    return (kl * rows.weights).sum(), by_student - by_teacher, (lse_s, lse_t)


def _columns(rows: _Rows, keys: _Keys, lse: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of the keys (G x S x N x C_s): attention with queries and keys exchanged."""
    keys_t = keys.student if keys.teacher is None else keys.teacher
    logs = rows.weights[:, :1].log().clamp_(min=MASKED)
    found = []
    for k, q, sums in ((keys.student, rows.student, lse[0]), (keys_t, rows.teacher, lse[1])):
        mixed, total = _attend(k, q, rows.student, logs - sums)
        found.append(mixed * total.exp_().unsqueeze(-1))
    grad = found[0].sub_(found[1])
    return grad if keys.mask is None else grad.masked_fill_(~keys.mask.unsqueeze(-1), 0.0)


def _cast(x: Tensor, rounding: torch.dtype | None) -> Tensor:
    """In the kernels' type; on CUDA padded to a power of two channels. Rounded vectors stay float32 on a CPU,
    where the uncompiled form would round similarities to them."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if rounding is not None:
        x = x.to(rounding).to(torch.float16)
    if rounding is None or not x.is_cuda:
        x = x.to(wide)
    channels = max(NARROWEST, 1 << (x.shape[-1] - 1).bit_length())
    return F.pad(x, (0, channels - x.shape[-1])) if x.is_cuda and channels != x.shape[-1] else x


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T + bias) v and its log-sum-exp, in the type of `v` and that of `bias`.

    q: G x S x M x C; k: G x S x N x C; v: G x S x N x C_v; bias: G x S x N.
    """
    out, lse = _flex(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias.flatten(0, 1))
    return out.view(*q.shape[:-1], -1), lse.to(bias.dtype).view(q.shape[:-1])


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    def biased(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[batch, column]

    out, aux = flex_attention(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        score_mod=biased,
        scale=1.0,
        return_aux=AuxRequest(lse=True),
    )
    assert aux.lse is not None
    return out.squeeze(1), aux.lse.squeeze(1)
