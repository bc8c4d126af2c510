"""The symmetric form against the general primitive and against whole matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses import symmetric
from cirkd_ray.losses.relational import relational_kl
from cirkd_ray.losses.symmetric import relational_kl_symmetric


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def naive(student: Tensor, teacher: Tensor, weights: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """One row of one ordered pair of images at a time."""
    total = student.new_zeros(())
    for i in range(len(student)):
        for j in range(len(student)):
            if not mask[j].any():
                continue  # nothing to compare with
            for row in range(student.shape[1]):
                z_s, z_t = (x[i, row] @ x[j][mask[j]].T / temperature for x in (student, teacher))
                kl = F.kl_div(z_s.log_softmax(0), z_t.log_softmax(0), log_target=True, reduction="sum")
                total = total + weights[i * student.shape[1] + row] * kl
    return total


@pytest.mark.parametrize("tile", [(4, 3), (3, 8), (64, 64)])
@pytest.mark.parametrize("hidden", ["nothing", "some tokens", "an image"])
def test_value_and_gradient_are_those_of_the_equation(tile: tuple[int, int], hidden: str) -> None:
    torch.manual_seed(0)
    student, teacher = unit(3, 11, 5).requires_grad_(), unit(3, 11, 7)
    mask = torch.ones(3, 11, dtype=torch.bool)
    if hidden == "some tokens":
        mask = torch.rand(3, 11) > 0.4
    if hidden == "an image":
        mask[1] = False
    weights = torch.rand(33, dtype=torch.float64) * mask.flatten()
    given = None if hidden == "nothing" else mask
    value = relational_kl_symmetric(student, teacher, weights, temperature=0.1, mask=given, tile=tile)
    expected = naive(student, teacher, weights, 0.1, mask)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    found, wanted = (torch.autograd.grad(x, student)[0] for x in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.034, 0.02, 0.005])
def test_float32_keeps_the_value_at_every_temperature(temperature: float) -> None:
    torch.manual_seed(1)
    student, teacher = unit(2, 300, 16), unit(2, 300, 24)
    weights = torch.full((600,), 1 / 1200, dtype=torch.float64)
    flat = student.flatten(0, 1), teacher.flatten(0, 1), student, teacher
    leaf = student.clone().requires_grad_()
    exact = relational_kl(leaf.flatten(0, 1), flat[1], leaf, teacher, weights, temperature=temperature)
    small = student.float().requires_grad_()
    value = relational_kl_symmetric(
        small, teacher.float(), weights.float(), temperature=temperature, tile=(128, 64)
    )
    torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=0)
    found, wanted = torch.autograd.grad(value, small)[0].double(), torch.autograd.grad(exact, leaf)[0]
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()


def test_gradcheck() -> None:
    torch.manual_seed(2)
    student, teacher = unit(2, 5, 4).requires_grad_(), unit(2, 5, 6)
    weights = torch.rand(10, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda x: relational_kl_symmetric(x, teacher, weights, temperature=0.5, tile=(2, 3)), student
    )


def test_every_pair_of_tokens_is_in_one_tile() -> None:
    seen = torch.zeros(33, 33, dtype=torch.int64)
    for tile in symmetric._tiles(3, 11, (4, 3)):
        seen[tile.rows, tile.columns] += 1
        if not tile.diagonal:
            seen[tile.columns, tile.rows] += 1
        assert tile.rows.start // 11 == (tile.rows.stop - 1) // 11 == tile.i
        assert tile.columns.start // 11 == (tile.columns.stop - 1) // 11 == tile.j
    assert (seen == 1).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 3),
    length=st.integers(1, 9),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**20),
    hidden=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_tiles_of_any_size_change_nothing(
    images: int, length: int, tile: tuple[int, int], seed: int, hidden: float
) -> None:
    torch.manual_seed(seed)
    student, teacher = unit(images, length, 4).requires_grad_(), unit(images, length, 6)
    mask = torch.rand(images, length) >= hidden
    weights = torch.rand(images * length, dtype=torch.float64) * mask.flatten()
    given_mask = mask if hidden else None

    def in_tiles(size: tuple[int, int]) -> Tensor:
        return relational_kl_symmetric(student, teacher, weights, temperature=0.1, mask=given_mask, tile=size)

    value, whole = in_tiles(tile), in_tiles((length, length))
    general = relational_kl(
        student.flatten(0, 1),
        teacher.flatten(0, 1),
        student,
        teacher,
        weights,
        temperature=0.1,
        key_mask=given_mask,
        chunk_rows=images * length,
    )
    (found,) = torch.autograd.grad(value, student)
    for other in (whole, general):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, *torch.autograd.grad(other, student), rtol=1e-8, atol=1e-11)
