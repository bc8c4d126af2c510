"""The primitive of cross-image distillation: KL between the teacher's and the student's relations.

Here a temperature becomes a loss. A relation of query i to a segment s of N keys is

    P = softmax_n(q_i . k_n / (temperature * kd_temperature)),
    KL_is = sum_n P_t[n] (log P_t[n] - log P_s[n]),

and the loss is `kd_temperature^2 * sum_i w_i sum_s KL_is` (Yang et al., Cross-Image Relational Knowledge
Distillation, CVPR 2022, eqs. 4 to 12). Its gradient is `G = P_s - P_t`: dq = G k, dk = G^T q. Rows are
independent, so they are worked through in chunks and both gradients are formed in the same pass: no
similarity matrix is ever held whole, and memory grows with the number of queries plus keys. The result is
exact, not an approximation.

Where queries and keys are the same tokens, `symmetric.py` does the same with fewer products.

There is no hand-written CUDA kernel: on the CPU three quarters of the time is in the four matrix products
(`cirkd bench losses`), which a kernel of our own would not do faster; nothing was measured on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cirkd_ray.device import no_autocast

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25, "meta": 2**62}
"""Entries of a similarity matrix held at once: in cache on a CPU, enough to fill a GPU (128 MiB), all
on `meta`, where nothing is computed."""
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
        chunk_rows = max(1, budget // max(1, student_keys.shape[1]))
    with no_autocast(student_queries):
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
        scale = 1.0 / (temperature * kd_temperature)
        weights = weights * kd_temperature**2
        scaled_s, scaled_t = q_s * scale, q_t * scale
        need_q, need_k = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        grad_q = torch.zeros_like(q_s) if need_q else None
        grad_k = (
            torch.zeros_like(k_s.transpose(1, 2), memory_format=torch.contiguous_format) if need_k else None
        )
        # Row weights go to the narrow factors of the products, never to the wide matrix.
        weighted = scaled_s * weights.unsqueeze(1) if need_k else scaled_s
        loss = q_s.new_zeros(())
        for segment in range(k_s.shape[0]):
            keys_s = k_s[segment]
            columns_s, columns_t = keys_s.T.contiguous(), k_t[segment].T.contiguous()
            row_bias = None if bias is None else bias[segment]
            for start in range(0, q_s.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                kl, grad = _rows(scaled_s[rows], scaled_t[rows], columns_s, columns_t, row_bias)
                loss += torch.dot(weights[rows], kl)
                if grad_q is not None:
                    grad_q[rows].addmm_(grad, keys_s)
                if grad_k is not None:
                    grad_k[segment].addmm_(weighted[rows].T, grad)
        if grad_q is not None:
            grad_q *= (weights * scale).unsqueeze(1)
        ctx.save_for_backward(grad_q, None if grad_k is None else grad_k.transpose(1, 2))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_k = (None if t is None else grad * t for t in ctx.saved_tensors)
        return grad_q, None, grad_k, None, None, None, None, None, None


def _rows(q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """KL of a chunk of rows (r), and its gradient with respect to the student's similarities (r x N)."""
    z_s, z_t = _similarity(q_s, k_s, bias), _similarity(q_t, k_t, bias)
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    # KL = sum p_t (z_t - z_s) + lse(z_s) - lse(z_t), and lse(z) = max z - log max p spares a second exp.
    lse_s, lse_t = (z.amax(1) - p.amax(1).log() for z, p in ((z_s, p_s), (z_t, p_t)))
    kl = torch.linalg.vecdot(p_t, z_t.sub_(z_s)) + lse_s - lse_t
    return kl, p_s.sub_(p_t)


def _similarity(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """r x N similarities of scaled queries (r x C) to keys (C x N)."""
    return q @ k if bias is None else torch.addmm(bias, q, k)
