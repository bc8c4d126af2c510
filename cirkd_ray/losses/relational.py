"""The primitive of cross-image distillation: KL between the teacher's and the student's relations.

Here a temperature becomes a loss. A relation of query i to a segment s of N keys is

    P = softmax_n(q_i . k_n / (temperature * kd_temperature)),
    KL_is = sum_n P_t[n] (log P_t[n] - log P_s[n]),

and the loss is `kd_temperature^2 * sum_i w_i sum_s KL_is` (Yang et al., Cross-Image Relational Knowledge
Distillation, CVPR 2022, eqs. 4 to 12). Its gradient is `G = P_s - P_t`: dq = G k, dk = G^T q. Rows are
independent, so they are worked through in chunks and both gradients are formed in the same pass: no
similarity matrix is ever held whole, and memory grows with the number of queries plus keys. The result is
exact, not an approximation.

Where queries and keys are the same tokens, `symmetric.py` does the same with fewer products on a CPU. On CUDA
devices `attention.py` does it on fused kernels; `paths.py` says which of them runs. Nothing was measured on a
GPU yet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cirkd_ray.device import no_autocast
from cirkd_ray.losses.attention import MASKED as MASKED
from cirkd_ray.losses.attention import Relation, attention_kl
from cirkd_ray.losses.paths import AUTOMATIC, Relations, products

CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**25, "meta": 2**62}
"""Entries of a similarity matrix held at once: in cache on a CPU, enough to fill a GPU (128 MiB), all
on `meta`, where nothing is computed."""

LARGEST = 30.0
"""Similarity over temperature up to which float32 sums exponentials without loss, as they are."""


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
    relations: Relations = AUTOMATIC,
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
        relations: kernels and precision on CUDA devices.
        chunk_rows: rows worked on at once in tiles; by default as many as `CHUNK_ELEMENTS` allows.

    Returns:
        A scalar in float32 (float64 for float64 inputs), also under autocast. Differentiable once.
    """
    relation = Relation(
        student_queries.unsqueeze(0),
        teacher_queries.unsqueeze(0),
        student_keys.unsqueeze(0),
        None if teacher_keys is student_keys else teacher_keys.unsqueeze(0),
        weights.unsqueeze(0),
        None if key_mask is None else key_mask.unsqueeze(0),
    )
    return relate(relation, temperature * kd_temperature, kd_temperature**2, relations, chunk_rows)


def relate(
    relation: Relation,
    temperature: float,
    factor: float,
    relations: Relations,
    chunk_rows: int | None = None,
) -> Tensor:
    """`factor` times the relational KL of all groups at `temperature`, on the kernels of `relations`."""
    device, scale = relation.q_s.device, 1.0 / temperature

    def fused(relation: Relation) -> Tensor:
        arithmetic = relations.arithmetic(device, True)
        rounding = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic)
        with no_autocast(relation.q_s), products(arithmetic, device):
            return attention_kl(relation, scale, factor, rounding)

    def tiles(relation: Relation) -> Tensor:
        arithmetic = relations.arithmetic(device, False)
        with no_autocast(relation.q_s), products(arithmetic, device):
            return _in_tiles(relation, scale, factor, arithmetic == "bf16", chunk_rows)

    return (fused if relations.is_fused(relation, fused, tiles) else tiles)(relation)


def _in_tiles(
    relation: Relation, scale: float, factor: float, rounded: bool, chunk_rows: int | None
) -> Tensor:
    """One group after the other; `rounded`: the vectors are rounded to bf16."""
    dtype = torch.promote_types(relation.q_s.dtype, torch.float32)
    near = torch.bfloat16 if rounded and dtype == torch.float32 else dtype
    q_s, q_t, k_s = (x.to(near).to(dtype) for x in (relation.q_s, relation.q_t, relation.k_s))
    k_t = k_s.detach() if relation.k_t is None else relation.k_t.to(near).to(dtype)
    weights, mask = relation.weights.to(dtype), relation.mask
    bias = None if mask is None else torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, MASKED)
    if chunk_rows is None:
        budget = CHUNK_ELEMENTS.get(q_s.device.type, CHUNK_ELEMENTS["cuda"])
        chunk_rows = max(1, budget // max(1, k_s.shape[2]))
    found: list[Tensor] = []
    for g in range(len(q_s)):
        queries = _counted(q_s[g], q_t[g], weights[g])
        keys = k_s[g], k_t[g], None if bias is None else bias[g]
        found.append(_RelationalKL.apply(*queries, *keys, scale, factor, chunk_rows))
    return found[0] if len(found) == 1 else torch.stack(found).sum()


def _counted(q_s: Tensor, q_t: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, on a CPU without those of weight 0; elsewhere to look which these are would be to wait."""
    if q_s.device.type != "cpu" or torch.compiler.is_compiling():
        return q_s, q_t, weights
    rows = weights.nonzero().squeeze(1)
    if len(rows) == len(weights):
        return q_s, q_t, weights
    return q_s.index_select(0, rows), q_t.index_select(0, rows), weights[rows]


class _RelationalKL(torch.autograd.Function):
    """See `relational_kl`; forward keeps the two gradients, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        q_s: Tensor,
        q_t: Tensor,
        weights: Tensor,
        k_s: Tensor,
        k_t: Tensor,
        bias: Tensor | None,
        scale: float,
        factor: float,
        chunk_rows: int,
    ) -> Tensor:
        weights = weights * factor
        scaled_s, scaled_t = q_s * scale, q_t * scale
        need_q, need_k = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        grad_q = torch.zeros_like(q_s) if need_q else None
        grad_k = (
            torch.zeros_like(k_s.transpose(1, 2), memory_format=torch.contiguous_format) if need_k else None
        )
        # Row weights go to the narrow factors of the products, never to the wide matrix.
        weighted = scaled_s * weights.unsqueeze(1) if need_k else scaled_s
        loss = q_s.new_zeros(())
        rows_of = _rows
        if bias is None and _is_bounded((scaled_s, k_s.flatten(0, 1)), (scaled_t, k_t.flatten(0, 1))):
            rows_of = _bounded_rows
        for segment in range(k_s.shape[0]):
            keys_s = k_s[segment]
            columns_s, columns_t = keys_s.T.contiguous(), k_t[segment].T.contiguous()
            row_bias = None if bias is None else bias[segment]
            for start in range(0, q_s.shape[0], chunk_rows):
                rows = slice(start, start + chunk_rows)
                kl, grad = rows_of(scaled_s[rows], scaled_t[rows], columns_s, columns_t, row_bias)
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
        return grad_q, None, None, grad_k, None, None, None, None, None


def _rows(q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """KL of a chunk of rows (r), and its gradient with respect to the student's similarities (r x N)."""
    z_s, z_t = _similarity(q_s, k_s, bias), _similarity(q_t, k_t, bias)
    p_s, p_t = z_s.softmax(1), z_t.softmax(1)
    # KL = sum p_t (z_t - z_s) + lse(z_s) - lse(z_t), and lse(z) = max z - log max p spares a second exp.
    lse_s, lse_t = (z.amax(1) - p.amax(1).log() for z, p in ((z_s, p_s), (z_t, p_t)))
    kl = torch.linalg.vecdot(p_t, z_t.sub_(z_s)) + lse_s - lse_t
    return kl, p_s.sub_(p_t)


def _is_bounded(*pairs: tuple[Tensor, Tensor]) -> bool:
    """On a CPU: whether all similarities of queries and keys are so small that their exponentials can be
    summed as they are."""
    tensors = [x for pair in pairs for x in pair]
    if torch.compiler.is_compiling() or any(x.device.type != "cpu" or not x.numel() for x in tensors):
        return False
    return all(float(q.norm(dim=1).amax() * k.norm(dim=1).amax()) <= LARGEST for q, k in pairs)


def _bounded_rows(
    q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_rows` of similarities that are small: one exponential each, and no maximum."""
    z_s, z_t = _similarity(q_s, k_s, bias), _similarity(q_t, k_t, bias)
    e_t = z_t.exp()
    along = torch.linalg.vecdot(e_t, z_t.sub_(z_s))
    e_s = z_s.exp_()
    sum_s, sum_t = e_s.sum(1), e_t.sum(1)
    kl = along / sum_t + sum_s.log() - sum_t.log()
    grad = e_s.div_(sum_s.unsqueeze(1)).addcmul_(e_t, sum_t.reciprocal().unsqueeze(1), value=-1)
    return kl, grad


def _similarity(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """r x N similarities of scaled queries (r x C) to keys (C x N)."""
    return q @ k if bias is None else torch.addmm(bias, q, k)
