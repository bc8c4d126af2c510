"""Relational KL on fused attention kernels: the values of `relational.py`, and no similarity in memory.

With queries divided by the temperature, `A(q, k, v) = softmax(q k^T) v` and its log-sum-exp `lse`, a row has

    KL = q_t . A(q_t, k_t, k_t) - q_s . A(q_t, k_t, k_s) + lse_s - lse_t,
    dKL/dq_s = (A(q_s, k_s, k_s) - A(q_t, k_t, k_s)) / temperature,

and the gradient of the keys, `P_s^T (w q_s) - P_t^T (w q_s)`, is attention with queries and keys exchanged
and the bias `log w - lse` on each row, times the exponential of its own log-sum-exp. So value and gradients
take five calls of a kernel that others keep (`torch.nn.attention.flex_attention`), and two where the keys are
those of a queue.

In bf16 the kernels round their inputs and outputs, the inputs being the smaller part: loss and gradient are
then within 1e-3 and 2.5e-2 of float64 (relative, unit vectors at random, temperature 0.1).

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

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


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


def attention_kl(relation: Relation, scale: float, factor: float, half: torch.dtype | None) -> Tensor:
    """`factor * sum_i w_i sum_s KL_is` over all groups, on attention kernels.

    Args:
        relation: gradients flow to `q_s` and `k_s` where they require them.
        scale: 1 / temperature, multiplies the similarities.
        factor: multiplies the result.
        half: the type of the kernels' inputs and outputs (their sums are float32), or None for that of the
            inputs.

    Returns:
        A scalar in float32 (float64 for float64 inputs). Differentiable once.
    """
    return _AttentionKL.apply(*relation, scale, factor, half)  # type: ignore[no-any-return]


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
        half: torch.dtype | None,
    ) -> Tensor:
        dtype = torch.promote_types(q_s.dtype, torch.float32)
        need_q, need_k = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        keys_s = _cast(k_s, 1.0, dtype, half)
        keys_t = None if k_t is None else _cast(k_t, 1.0, dtype, half)
        sides = _Rows(
            _cast(q_s, scale, dtype, half), _cast(q_t, scale, dtype, half), weights.to(dtype) * factor
        )
        attend = _attention(q_s.device, half)
        loss = q_s.new_zeros((), dtype=dtype)
        grad_q = torch.zeros_like(q_s, dtype=dtype) if need_q else None
        grad_k = torch.zeros_like(k_s, dtype=dtype) if need_k else None
        for segment in range(k_s.shape[1]):
            keys = _Keys(
                keys_s[:, segment],
                None if keys_t is None else keys_t[:, segment],
                None if mask is None else mask[:, segment],
            )
            value, d_rows, lse = _rows(attend, sides, keys, need_q)
            loss += value
            if grad_q is not None and d_rows is not None:
                grad_q += d_rows[..., : q_s.shape[-1]]
            if grad_k is not None:
                grad_k[:, segment] = _columns(attend, sides, keys, lse)[..., : k_s.shape[-1]]
        if grad_q is not None:
            grad_q *= (sides.weights * scale).unsqueeze(-1)
            grad_q = grad_q.to(q_s.dtype)
        ctx.save_for_backward(grad_q, None if grad_k is None else grad_k.to(k_s.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = (None if t is None else grad.to(t.dtype) * t for t in ctx.saved_tensors)
        return grad_q, None, grad_k, None, None, None, None, None, None


class _Rows(NamedTuple):
    """Scaled queries of both sides (G x M x C) in the kernels' type, and the weights (G x M) in full."""

    student: Tensor
    teacher: Tensor
    weights: Tensor


class _Keys(NamedTuple):
    """One segment's keys (G x N x C) of both sides, and which count (G x N)."""

    student: Tensor
    teacher: Tensor | None
    mask: Tensor | None

    def bias(self, like: Tensor) -> Tensor:
        """G x N: what a key adds to its similarities."""
        zeros = like.new_zeros(self.student.shape[:2])
        return zeros if self.mask is None else zeros.masked_fill_(~self.mask, MASKED)


def _rows(
    attend: Attend, rows: _Rows, keys: _Keys, need_q: bool
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
    """One segment's value, the difference of attentions that is the queries' gradient, and both `lse`."""
    bias = keys.bias(rows.weights)
    keys_t = keys.student if keys.teacher is None else keys.teacher
    by_teacher, lse_t = attend(rows.teacher, keys_t, keys.student, bias)
    by_student, lse_s = attend(rows.student, keys.student, keys.student, bias)
    own = by_teacher if keys.teacher is None else attend(rows.teacher, keys_t, keys_t, bias)[0]
    kl = _dot(rows.teacher, own) - _dot(rows.student, by_teacher)
    kl += lse_s - lse_t
    if keys.mask is not None:  # rows without any key to compare with are worth 0
        none = ~keys.mask.any(1, keepdim=True)
        kl, lse_s, lse_t = (x.masked_fill(none, 0.0) for x in (kl, lse_s, lse_t))
    return torch.vdot(kl.flatten(), rows.weights.flatten()), by_student.sub_(by_teacher), (lse_s, lse_t)


def _columns(attend: Attend, rows: _Rows, keys: _Keys, lse: tuple[Tensor, Tensor]) -> Tensor:
    """One segment's gradient of the keys (G x N x C_s): attention with queries and keys exchanged."""
    keys_t = keys.student if keys.teacher is None else keys.teacher
    logs = rows.weights.log().clamp_(min=MASKED)
    found = []
    for k, q, sums in ((keys.student, rows.student, lse[0]), (keys_t, rows.teacher, lse[1])):
        mixed, total = attend(k, q, rows.student, logs - sums)
        found.append(mixed.mul_(total.exp().unsqueeze(-1)))
    grad = found[0].sub_(found[1])
    return grad if keys.mask is None else grad.masked_fill_(~keys.mask.unsqueeze(-1), 0.0)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products along the last dimension, in the type of `y`."""
    product: Tensor = torch.linalg.vecdot(x.to(y.dtype), y)
    return product


def _cast(x: Tensor, scale: float, dtype: torch.dtype, half: torch.dtype | None) -> Tensor:
    """Scaled, in the kernels' type; on CUDA padded to a power of two channels. Halves stay float32 on a CPU,
    where the uncompiled form would round similarities to them."""
    x = x.detach().to(dtype) * scale
    if half is not None:
        x = x.to(half) if x.is_cuda else x.to(half).to(dtype)
    wide = max(NARROWEST, 1 << (x.shape[-1] - 1).bit_length())
    return F.pad(x, (0, wide - x.shape[-1])) if x.is_cuda else x


def _attention(device: torch.device, half: torch.dtype | None) -> Attend:
    """softmax(q k^T + bias) v (B x M x C_v) and its log-sum-exp (B x M), both in the bias's type."""
    kernel = _compiled() if device.type == "cuda" else _flex

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = kernel(q, k, v, bias)
        if half is not None:
            out = out.to(half)  # as the compiled kernels return it
        return out.to(bias.dtype), lse.to(bias.dtype)

    return attend


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


@functools.cache
def _compiled() -> Attend:
    """The kernels, compiled once a shape. Never uncompiled: that form would hold whole matrices."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, SIGNATURES)
    return torch.compile(_flex, fullgraph=True, dynamic=False)
