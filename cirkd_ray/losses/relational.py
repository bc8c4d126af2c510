"""The one primitive of cross-image distillation: KL between the teacher's and the student's rows of
similarities.

For a query i and a segment s of N keys, with similarities q_i . k_n divided by the temperature,

    KL_is = sum_n  P_t[n] (log P_t[n] - log P_s[n]),    P = softmax_n(q_i . k_n / (temperature *
    kd_temperature))

and the loss is `kd_temperature^2 * sum_i w_i sum_s KL_is` (Yang et al., Cross-Image Relational Knowledge
Distillation, CVPR 2022, eqs. 4 to 12). Its gradient is `G = P_s - P_t`: dq = G k, dk = G^T q. Rows are
independent, so they are worked through in chunks and both gradients are formed in the same pass: no
similarity matrix is ever held whole, and memory grows with the number of queries plus keys. The result is
exact, not an approximation.

There is no hand-written CUDA kernel: two thirds of the time is in the four matrix products that cuBLAS or
oneDNN do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Entries of a similarity matrix held at once: in cache on a CPU, enough to fill a GPU (128 MiB)."""
MASKED = -1e30
"""Added to the similarity of a key that does not count: finite, so that a row without valid keys is too."""


def relational_kl(
    student_queries: Tensor,
    teacher_queries: Tensor,
    student_keys: Tensor,
    teacher_keys: Tensor,
    weights: Tensor,
    *,
    temperature: float,
    kd_temperature: float = 1.0,
    key_mask: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Weighted sum over queries and segments of the relational KL divergence.

    Args:
        student_queries: M x C_s; usually L2-normalised, as are all four.
        teacher_queries: M x C_t, no gradient.
        student_keys: S x N x C_s: S segments with a softmax each. Gradients flow to it where it requires
            them.
        teacher_keys: S x N x C_t, no gradient.
        weights: M row weights, no gradient; 1 / (M * S) everywhere gives the mean.
        temperature: divides the similarities.
        kd_temperature: divides them once more; the loss is multiplied by its square.
        key_mask: S x N bool, false for keys that do not count.
        chunk_rows: rows worked on at once; by default as many as `CHUNK_ELEMENTS` allows.

    Returns:
        A scalar in float32 (float64 for float64 inputs), also under autocast. Differentiable once.
    """
    dtype = torch.promote_types(student_queries.dtype, torch.float32)
    tensors = [t.to(dtype) for t in (student_queries, teacher_queries, student_keys, teacher_keys, weights)]
    bias = (
        None if key_mask is None else torch.zeros_like(key_mask, dtype=dtype).masked_fill_(~key_mask, MASKED)
    )
    if chunk_rows is None:
        budget = CHUNK_ELEMENTS.get(student_queries.device.type, CHUNK_ELEMENTS["cuda"])
        chunk_rows = max(1, budget // max(1, student_keys.shape[0] * student_keys.shape[1]))
    with torch.autocast(student_queries.device.type, enabled=False):
        return _RelationalKL.apply(*tensors, bias, temperature, kd_temperature, chunk_rows)  # type: ignore[no-any-return]


class _RelationalKL(torch.autograd.Function):
    """See `relational_kl`; forward keeps the two gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        q_s: Tensor,
        q_t: Tensor,
        k_s: Tensor,
        k_t: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        temperature: float,
        kd_temperature: float,
        chunk_rows: int,
    ) -> Tensor:
        segments, scale = k_s.shape[0], 1.0 / (temperature * kd_temperature)
        flat_s, flat_t = k_s.flatten(0, 1), k_t.flatten(0, 1)
        flat_bias = None if bias is None else bias.flatten()
        need_q, need_k = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        grad_q = torch.empty_like(q_s) if need_q else None
        grad_k = torch.zeros_like(flat_s) if need_k else None
        loss = q_s.new_zeros(())
        for start in range(0, q_s.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            row_q, row_w = q_s[rows] * scale, weights[rows] * kd_temperature**2
            kl, grad = _rows(row_q, q_t[rows] * scale, flat_s, flat_t, flat_bias, segments)
            loss += torch.dot(row_w, kl)
            # The row weight goes to the narrow factor of each product, not to the wide matrix.
            if grad_q is not None:
                torch.mul(grad @ flat_s, (row_w * scale).unsqueeze(1), out=grad_q[rows])
            if grad_k is not None:
                grad_k.addmm_(grad.T, row_q * row_w.unsqueeze(1))
        ctx.save_for_backward(grad_q, grad_k)
        ctx.key_shape = k_s.shape
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = ctx.saved_tensors
        d_q = None if grad_q is None else grad * grad_q
        d_k = None if grad_k is None else (grad * grad_k).view(ctx.key_shape)
        return d_q, None, d_k, None, None, None, None, None, None


def _rows(
    q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, bias: Tensor | None, segments: int
) -> tuple[Tensor, Tensor]:
    """KL of a chunk of rows summed over segments (r), and its gradient for the similarities (r x S*N)."""
    log_s = _log_softmax(q_s, k_s, bias, segments)
    log_t = _log_softmax(q_t, k_t, bias, segments)
    p_t = log_t.exp()
    kl = torch.linalg.vecdot(p_t, log_t.sub_(log_s)).sum(1)
    return kl, log_s.exp_().sub_(p_t).flatten(1)


def _log_softmax(q: Tensor, k: Tensor, bias: Tensor | None, segments: int) -> Tensor:
    """r x S x N log-probabilities of scaled queries (r x C) over each segment's keys (S*N x C)."""
    similarity = q @ k.T if bias is None else torch.addmm(bias, q, k.T)
    return similarity.view(q.shape[0], segments, -1).log_softmax(-1)
