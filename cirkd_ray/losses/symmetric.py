"""Relational KL of tokens with themselves, at four fifths of the matrix products.

Where queries and keys are the same tokens, the similarities of images i and j serve the ordered pairs
(i, j), by a softmax over their rows, and (j, i), by one over their columns. So each similarity is formed for
half of the matrix only, in two passes over tiles: the first gathers the log-sum-exp of every token against
every image in both directions, the second forms

    H = w_r P_s(row) + w_c P_s(column) - w_r P_t(row) - w_c P_t(column)

of each tile, which gives the gradients of both directions at once: dx_r += H x_c, dx_c += H^T x_r. The result
is that of `relational_kl`, exact; memory grows with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cirkd_ray.device import no_autocast
from cirkd_ray.losses.attention import MASKED, Relation
from cirkd_ray.losses.paths import AUTOMATIC, Relations
from cirkd_ray.losses.relational import relate

TILE = (1024, 1024)
"""Rows and columns of similarities worked on at once: in cache on a CPU."""
WIDEST = 60.0
"""Widest range of similarities over temperature whose exponentials float32 sums without loss."""


def relational_kl_symmetric(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
    relations: Relations = AUTOMATIC,
    tile: tuple[int, int] = TILE,
) -> Tensor:
    """`relational_kl` with the tokens of every image of a group as queries and as keys.

    On devices other than CPUs it is plain `relational_kl`, fused or in tiles: all groups in one call.

    Args:
        student: N x L x C_s, L2-normalised; or G x N x L x C_s: G groups, whose values are added.
        teacher: N x L x C_t, or G x N x L x C_t; L2-normalised, no gradient.
        weights: N*L row weights (G*N*L), no gradient; 1 / (N * L * N) everywhere gives the mean over rows and
            ordered pairs of images (CIRKD, eq. 6).
        temperature: divides the similarities.
        mask: N x L (G x N x L) bool, false for tokens that do not count as keys; their weight must be 0.
        relations: kernels and precision on CUDA devices.
        tile: rows and columns worked on at once on a CPU.

    Returns:
        A scalar in float32 (float64 for float64 inputs), also under autocast. Differentiable once.
    """
    if student.ndim == 3:
        student, teacher = student.unsqueeze(0), teacher.unsqueeze(0)
        mask = None if mask is None else mask.unsqueeze(0)
    weights = weights.view(len(student), -1)
    # Sums over columns have no maximum of their own to subtract: the widest ranges go by rows alone.
    if student.device.type != "cpu" or 2.0 / temperature > WIDEST:
        queries = student.flatten(1, 2), teacher.flatten(1, 2)
        return relate(Relation(*queries, student, teacher, weights, mask), temperature, 1.0, relations)
    found = [
        _group(student[g], teacher[g], weights[g], None if mask is None else mask[g], temperature, tile)
        for g in range(len(student))
    ]
    return found[0] if len(found) == 1 else torch.stack(found).sum()


def _group(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    temperature: float,
    tile: tuple[int, int],
) -> Tensor:
    """One group on a CPU."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, MASKED).flatten()
    with no_autocast(student):
        return _SymmetricKL.apply(  # type: ignore[no-any-return]
            student.to(dtype), teacher.to(dtype), weights.to(dtype), bias, 1.0 / temperature, tile
        )


class _Tile(NamedTuple):
    """Rows of image `i` against columns of image `j`; a diagonal tile serves one direction."""

    rows: slice
    columns: slice
    i: int
    j: int

    @property
    def diagonal(self) -> bool:
        return self.rows == self.columns


def _tiles(images: int, length: int, size: tuple[int, int]) -> Iterator[_Tile]:
    """The upper half of the similarity matrix of images * length tokens."""
    for i in range(images):
        end = (i + 1) * length
        for start in range(i * length, end, size[0]):
            rows = slice(start, min(start + size[0], end))
            yield _Tile(rows, rows, i, i)
            for j in range(i, images):
                first = rows.stop if j == i else j * length
                for left in range(first, (j + 1) * length, size[1]):
                    yield _Tile(rows, slice(left, min(left + size[1], (j + 1) * length)), i, j)


class _Side:
    """Student or teacher: its scaled tokens, and the log-sum-exps of every token against every image."""

    def __init__(self, tokens: Tensor, scale: float, bias: Tensor | None, size: tuple[int, int]) -> None:
        images = tokens.shape[0]
        flat = tokens.flatten(0, 1)
        self.rows, self.columns, self.bias, self.scale = flat * scale, flat.T.contiguous(), bias, scale
        self.valid = None if bias is None else (bias == 0).to(flat.dtype)
        self.lse = flat.new_full((len(flat), images), -torch.inf)
        self.sums = flat.new_zeros(len(flat), images)
        most = min(size[0], tokens.shape[1]) * min(max(size), tokens.shape[1])
        self.z, self.p = flat.new_empty(most), flat.new_empty(most)

    def similarities(self, tile: _Tile) -> tuple[Tensor, Tensor, Tensor]:
        """r x c similarities of a tile, their softmax over the tile's columns (both in this side's buffers)
        and their log-sum-exp."""
        shape = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start)
        z, p = (x[: shape[0] * shape[1]].view(shape) for x in (self.z, self.p))
        rows, columns = self.rows[tile.rows], self.columns[:, tile.columns]
        if self.bias is None:
            torch.mm(rows, columns, out=z)
        else:
            torch.addmm(self.bias[tile.columns], rows, columns, out=z)
        torch.softmax(z, 1, out=p)
        return z, p, z.amax(1) - p.amax(1).log()  # max p = exp(max z - lse) spares a second exp

    def gather(self, tile: _Tile) -> None:
        """First pass: add a tile to the log-sum-exps of its rows, and to the sums of its columns."""
        _, p, lse = self.similarities(tile)
        self.lse[tile.rows, tile.j] = torch.logaddexp(self.lse[tile.rows, tile.j], lse)
        if not tile.diagonal:
            self.sums[tile.columns, tile.i] += self._column_factor(tile, lse) @ p

    def finish(self) -> None:
        """Join both directions. A token without any valid key in an image has 0 there."""
        self.lse = torch.logaddexp(self.lse, self.sums.log() + self.scale)
        self.lse.masked_fill_(~(self.lse > MASKED / 2), 0.0)

    def weighted(self, tile: _Tile, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Second pass: a tile's similarities and its `w_r P(row) + w_c P(column)`; weights: of all tokens."""
        z, p, lse = self.similarities(tile)
        by_row = weights[tile.rows] * (lse - self.lse[tile.rows, tile.j]).exp_()
        if tile.diagonal:
            return z, p.mul_(by_row.unsqueeze(1))
        by_column = weights[tile.columns] * (self.scale - self.lse[tile.columns, tile.i]).exp_()
        return z, p.mul_(torch.addr(by_row.unsqueeze(1), self._column_factor(tile, lse), by_column))

    def _column_factor(self, tile: _Tile, lse: Tensor) -> Tensor:
        """What turns rows of p into exponentials less the largest possible; 0 for rows that are no keys."""
        factor = (lse - self.scale).exp_()
        return factor if self.valid is None else factor * self.valid[tile.rows]


class _SymmetricKL(torch.autograd.Function):
    """See `relational_kl_symmetric`; forward keeps the gradient, backward scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        scale: float,
        size: tuple[int, int],
    ) -> Tensor:
        tokens = student.flatten(0, 1)
        sides = s, t = [_Side(x, scale, bias, size) for x in (student, teacher)]
        tiles = list(_tiles(student.shape[0], student.shape[1], size))
        for tile in tiles:
            s.gather(tile)
            t.gather(tile)
        for side in sides:
            side.finish()
        loss = torch.dot(weights, (s.lse - t.lse).sum(1))
        grad = torch.zeros_like(tokens)
        for tile in tiles:
            (z_s, h_s), (z_t, h_t) = s.weighted(tile, weights), t.weighted(tile, weights)
            loss += torch.dot(h_t.flatten(), z_t.sub_(z_s).flatten())
            h = h_s.sub_(h_t)
            grad[tile.rows].addmm_(h, tokens[tile.columns])
            grad[tile.columns].addmm_(h.T, tokens[tile.rows])
        ctx.save_for_backward(grad.mul_(scale).view_as(student))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return grad * saved, None, None, None, None, None
