"""The relational primitive against whole matrices and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses import relational
from cirkd_ray.losses.relational import relational_kl
from cirkd_ray.train.memory import peak_bytes

CPU = torch.device("cpu")


def tensors(seed: int = 0, rows: int = 7, segments: int = 3, keys: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, 4), (rows, 6), (segments, keys, 4), (segments, keys, 6)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def whole(
    q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor, weights: Tensor, tau: float, kd: float, mask: Tensor
) -> Tensor:
    """The definition, with every matrix in full."""
    total = q_s.new_zeros(())
    for s in range(len(k_s)):
        z_s, z_t = (q @ k[s][mask[s]].T / tau / kd for q, k in ((q_s, k_s), (q_t, k_t)))
        p, q = z_t.softmax(1), z_s.softmax(1)
        total = total + (weights * (p * (p / q).log()).sum(1)).sum()
    return total * kd**2


@pytest.mark.parametrize("chunk_rows", [1, 3, None])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(chunk_rows: int | None, masked: bool) -> None:
    q_s, q_t, k_s, k_t = tensors()
    weights = torch.rand(7, dtype=torch.float64)
    weights[2] = 0.0
    mask = torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 1], mask[2, 3:] = False, False
    found = []
    for function in ("ours", "whole"):
        q, k = q_s.clone().requires_grad_(), k_s.clone().requires_grad_()
        if function == "ours":
            value = relational_kl(
                q,
                q_t,
                k,
                k_t,
                weights,
                temperature=0.5,
                kd_temperature=3.0,
                key_mask=mask,
                chunk_rows=chunk_rows,
            )
        else:
            value = whole(q, q_t, k, k_t, weights, 0.5, 3.0, mask)
        (2.0 * value).backward()
        found.append((value, q.grad, k.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    segments=st.integers(1, 3),
    keys=st.integers(1, 6),
    chunk_rows=st.integers(1, 10),
    seed=st.integers(0, 2**20),
    hidden=st.sampled_from([None, 0.3, 1.0]),
)
def test_chunks_of_any_size_change_nothing(
    rows: int, segments: int, keys: int, chunk_rows: int, seed: int, hidden: float | None
) -> None:
    q_s, q_t, k_s, k_t = tensors(seed, rows, segments, keys)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64)
    mask = None if hidden is None else torch.rand(segments, keys, generator=generator) >= hidden
    found = []
    for chunk in (chunk_rows, rows):
        q, k = q_s.clone().requires_grad_(), k_s.clone().requires_grad_()
        value = relational_kl(
            q, q_t, k, k_t, weights, temperature=0.5, kd_temperature=2.0, key_mask=mask, chunk_rows=chunk
        )
        value.backward()
        found.append((value, q.grad, k.grad))
    for mine, whole_matrix in zip(*found, strict=True):
        torch.testing.assert_close(mine, whole_matrix, rtol=1e-9, atol=1e-12)


def test_rows_without_a_valid_key_cost_nothing() -> None:
    q_s, q_t, k_s, k_t = tensors()
    q_s.requires_grad_()
    none = torch.zeros(3, 5, dtype=torch.bool)
    value = relational_kl(q_s, q_t, k_s, k_t, torch.ones(7), temperature=0.1, key_mask=none)
    assert value.item() == 0.0
    value.backward()
    assert q_s.grad is not None
    assert not bool(q_s.grad.any())


def test_gradients_only_where_they_are_wanted() -> None:
    q_s, q_t, k_s, k_t = tensors()
    for wanted in (q_s, k_s):
        for t in (q_s, k_s):
            t.requires_grad_(t is wanted)
        value = relational_kl(q_s, q_t, k_s, k_t, torch.ones(7), temperature=0.1)
        (grad,) = torch.autograd.grad(value, wanted)
        assert grad.shape == wanted.shape


def test_autocast_does_not_touch_the_products() -> None:
    arguments = [t.float() for t in tensors()]
    expected = relational_kl(*arguments, torch.ones(7), temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = relational_kl(*arguments, torch.ones(7), temperature=0.1)
        half = relational_kl(*(t.bfloat16() for t in arguments), torch.ones(7), temperature=0.1)
    assert torch.equal(value, expected)
    assert half.dtype == torch.float32


def test_memory_grows_with_tokens_not_their_square() -> None:
    def peak(tokens: int) -> int:
        x = torch.nn.functional.normalize(torch.randn(tokens, 8)).requires_grad_()
        k, weights = x.detach().unsqueeze(0), torch.full((tokens,), 1.0 / tokens)

        def call() -> None:
            relational_kl(
                x, x.detach(), x.unsqueeze(0), k, weights, temperature=0.1, chunk_rows=16
            ).backward()

        return peak_bytes(call, CPU)

    small, large = peak(1024), peak(2048)
    assert large < 2.2 * small
    assert large < 4 * 2048**2 / 8  # an eighth of one full matrix


def test_traced_by_torch_compile() -> None:
    q_s, q_t, k_s, k_t = tensors()
    q_s.requires_grad_()

    def loss(q: Tensor) -> Tensor:
        return relational_kl(q, q_t, k_s, k_t, torch.ones(7), temperature=0.1, chunk_rows=4)

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q_s), loss(q_s))
    (mine,), (expected,) = (torch.autograd.grad(f(q_s), q_s) for f in (compiled, loss))
    torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("size", [1.0, 2.5])
def test_small_and_large_similarities_have_the_same_form(size: float) -> None:
    """Exponentials of small ones are summed as they are, those of large ones less the row's maximum."""
    torch.manual_seed(0)
    q_s, q_t, keys = (F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (9, 9, 7))
    q_s, q_t, keys = q_s * size, q_t * size, keys.unsqueeze(0) * size
    bounded = relational._is_bounded((q_s * 10, keys[0]), (q_t * 10, keys[0]))
    assert bounded is (size == 1.0)
    leaf = q_s.clone().requires_grad_()
    weights = torch.full((9,), 1 / 9, dtype=torch.float64)
    value = relational_kl(leaf, q_t, keys, keys, weights, temperature=0.1)
    teacher, student = ((q @ keys[0].T * 10).log_softmax(1) for q in (q_t, leaf))
    expected = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    found, wanted = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ignored", [0, 3, 7])
def test_rows_of_no_weight_are_not_computed(ignored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q_s, q_t, k_s, _ = tensors()
    seen = []
    for name in ("_rows", "_bounded_rows"):
        plain = getattr(relational, name)
        monkeypatch.setattr(relational, name, lambda q, *rest, f=plain: (seen.append(len(q)), f(q, *rest))[1])
    weights = torch.full((7,), 0.2, dtype=torch.float64)
    weights[:ignored] = 0.0
    q_s[:ignored] = torch.nan
    q_t[:, 4:] = 0.0
    leaf = q_s.requires_grad_()
    value = relational_kl(leaf, q_t[:, :4], k_s, k_s, weights, temperature=0.5)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert sum(seen) == len(k_s) * (7 - ignored)
    assert torch.isfinite(value)
    assert torch.equal(gradient[:ignored], torch.zeros(ignored, 4, dtype=torch.float64))
    assert bool((gradient[ignored:] != 0).all())
