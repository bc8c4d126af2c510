"""The relational loss by attention against tiles: the same values in float64, and bounds of its roundings.

The kernels run uncompiled here; what their compiled form gives is in `test_losses_cuda.py`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses import attention as module
from cirkd_ray.losses.attention import MASKED, Relation, attention_kl
from cirkd_ray.losses.paths import Relations
from cirkd_ray.losses.relational import relate, relational_kl
from cirkd_ray.losses.symmetric import relational_kl_symmetric

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def by_attention(
    q_s: Tensor, q_t: Tensor, k_s: Tensor, k_t: Tensor | None, weights: Tensor, mask: Tensor | None
) -> Tensor:
    return attention_kl(Relation(q_s, q_t, k_s, k_t, weights, mask), 10.0, 1.0, None)


@pytest.mark.parametrize("hidden", ["nothing", "some keys", "a segment"])
def test_value_and_gradients_are_those_of_tiles(hidden: str) -> None:
    torch.manual_seed(0)
    q_s, q_t, k_s, k_t = unit(2, 9, 4), unit(2, 9, 6), unit(2, 3, 7, 4), unit(2, 3, 7, 6)
    weights = torch.rand(2, 9, dtype=torch.float64)
    weights[1, 2] = 0.0
    mask = None if hidden == "nothing" else torch.rand(2, 3, 7) > 0.4
    if hidden == "a segment":
        assert mask is not None
        mask[0, 1] = False
    found = []
    for fused in (True, False):
        q, k = q_s.clone().requires_grad_(), k_s.clone().requires_grad_()
        if fused:
            value = by_attention(q, q_t, k, k_t, weights, mask)
        else:
            value = q.new_zeros(())
            for g in range(2):
                keys = None if mask is None else mask[g]
                value = value + relational_kl(
                    q[g], q_t[g], k[g], k_t[g], weights[g], temperature=0.1, key_mask=keys
                )
        (3.0 * value).backward()
        found.append((value, q.grad, k.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_keys_of_a_queue_stand_on_both_sides() -> None:
    torch.manual_seed(1)
    q_s, q_t, keys, weights = unit(9, 6).requires_grad_(), unit(9, 6), unit(1, 7, 6), torch.rand(9)
    value = attention_kl(
        Relation(q_s.unsqueeze(0), q_t.unsqueeze(0), keys.unsqueeze(0), None, weights.double()[None], None),
        1 / 0.3,
        9.0,
        None,
    )
    expected = relational_kl(q_s, q_t, keys, keys, weights.double(), temperature=0.1, kd_temperature=3.0)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    found, wanted = (torch.autograd.grad(x, q_s)[0] for x in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_nothing_to_compare_with_is_worth_nothing() -> None:
    torch.manual_seed(2)
    q_s, q_t, k_s, k_t = unit(1, 5, 4).requires_grad_(), unit(1, 5, 6), unit(1, 2, 7, 4), unit(1, 2, 7, 6)
    k_s.requires_grad_()
    mask = torch.zeros(1, 2, 7, dtype=torch.bool)
    value = by_attention(q_s, q_t, k_s, k_t, torch.ones(1, 5, dtype=torch.float64), mask)
    value.backward()
    assert value.item() == 0.0
    assert q_s.grad is not None
    assert k_s.grad is not None
    assert not q_s.grad.any()
    assert not k_s.grad.any()


def test_gradients_of_the_queries_alone() -> None:
    torch.manual_seed(3)
    q_s, q_t, k_s, k_t = unit(1, 5, 4).requires_grad_(), unit(1, 5, 6), unit(1, 2, 7, 4), unit(1, 2, 7, 6)
    value = by_attention(q_s, q_t, k_s, k_t, torch.ones(1, 5, dtype=torch.float64), None)
    expected = relational_kl(q_s[0], q_t[0], k_s[0], k_t[0], torch.ones(5), temperature=0.1)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, q_s)[0] for x in (value, expected)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("hidden", [False, True])
def test_groups_are_the_sum_of_their_relations(hidden: bool) -> None:
    """The form of other devices (all groups at once) and that of CPUs."""
    torch.manual_seed(4)
    student, teacher = unit(2, 3, 7, 4).requires_grad_(), unit(2, 3, 7, 6)
    mask = torch.rand(2, 3, 7) > 0.3 if hidden else None
    weights = torch.rand(2, 21, dtype=torch.float64)
    if mask is not None:
        weights = weights * mask.flatten(1)
    value = relational_kl_symmetric(student, teacher, weights.flatten(), temperature=0.1, mask=mask)
    queries = student.flatten(1, 2), teacher.flatten(1, 2)
    plain = relate(Relation(*queries, student, teacher, weights, mask), 0.1, 1.0, Relations())
    fused = by_attention(*queries, student, teacher, weights, mask)
    one = sum(
        relational_kl_symmetric(
            student[g], teacher[g], weights[g], temperature=0.1, mask=None if mask is None else mask[g]
        )
        for g in range(2)
    )
    (found,) = torch.autograd.grad(value, student)
    for other in (plain, fused, one):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=0)
        torch.testing.assert_close(found, *torch.autograd.grad(other, student), rtol=1e-9, atol=1e-12)


def test_a_large_bias_is_finite_in_float32() -> None:
    assert torch.isfinite(torch.tensor(MASKED, dtype=torch.float32) * 1.5)  # kernels multiply by log2(e)


def tf32(x: Tensor) -> Tensor:
    """Rounded to the ten bits of mantissa of TF32, to nearest."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def fp16(x: Tensor) -> Tensor:
    return x.half().double()


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().double()


@pytest.mark.parametrize(
    ("near", "bounds"),
    [
        (False, {"tf32": (2e-5, 1e-3), "fp16": (2e-5, 1e-3), "bf16": (1e-4, 8e-3)}),
        (True, {"tf32": (5e-5, 4e-3), "fp16": (5e-5, 4e-3), "bf16": (2e-4, 3e-2)}),
    ],
    ids=["student of another network", "student near its teacher"],
)
def test_error_table_of_rounded_vectors(near: bool, bounds: dict[str, tuple[float, float]]) -> None:
    """The bounds of `paths.py`; the relative ones are wider for a student near its teacher, whose loss is
    small (the issue's bounds, 2e-5 and 1e-3, 1e-4 and 8e-3, are those of another network)."""
    torch.manual_seed(5)
    teacher = unit(2, 1024, 128)
    student = F.normalize(teacher + 0.3 * unit(2, 1024, 128), dim=-1) if near else unit(2, 1024, 128)
    exact = loss_and_gradient(student, teacher)
    for name, rounding in (("tf32", tf32), ("fp16", fp16), ("bf16", bf16)):
        value, gradient = loss_and_gradient(rounding(student), rounding(teacher))
        off = relative(value, exact[0]), relative(gradient, exact[1])
        assert off[0] < bounds[name][0], name
        assert off[1] < bounds[name][1], name


@pytest.mark.parametrize("images", [2, 5])
@pytest.mark.parametrize("rounding", [torch.float16, torch.bfloat16])
def test_kernels_in_fp16_stay_within_the_bounds(
    rounding: torch.dtype, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their inputs, the weights of their sums and their results rounded as the compiled kernels do, sums in
    float32: the bounds of `attention.py`."""
    monkeypatch.setattr(module, "_flex", rounded_attention)
    monkeypatch.setattr(module, "AT_ONCE", 2 * images * 128 * 256)  # segments in several calls
    torch.manual_seed(6)
    student, teacher = unit(1, images, 128, 128).float().requires_grad_(), unit(1, images, 128, 256).float()
    weights = torch.full((1, images * 128), 1 / (images * images * 128))
    relation = Relation(student.flatten(1, 2), teacher.flatten(1, 2), student, teacher, weights, None)
    value = attention_kl(relation, 10.0, 1.0, rounding)
    (gradient,) = torch.autograd.grad(value, student)
    exact = loss_and_gradient(student.detach()[0].double(), teacher[0].double())
    assert value.dtype == torch.float32
    assert relative(value.detach().double(), exact[0]) < 1e-4
    assert relative(gradient[0].double(), exact[1]) < 8e-3


def test_the_whole_is_traced_into_one_graph() -> None:
    """As the compiler does for CUDA, but for the kernels themselves."""
    torch.manual_seed(7)
    q, keys, weights = unit(2, 5, 4), unit(2, 3, 7, 4), torch.rand(2, 5, dtype=torch.float64)
    scale = torch.tensor(10.0, dtype=torch.float64)
    mask = torch.rand(2, 3, 7) > 0.3
    traced = torch.compile(module._fused_kl, backend="aot_eager", fullgraph=True, dynamic=False)
    for k_t, hidden in ((None, None), (unit(2, 3, 7, 4), mask)):
        arguments = (q, unit(2, 5, 4), keys, k_t, weights, hidden, scale, None, True, True)
        torch.testing.assert_close(traced(*arguments), module._fused_kl(*arguments), rtol=1e-9, atol=1e-12)


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    z = q @ k.transpose(1, 2) + bias.unsqueeze(1)
    p = (z - z.amax(2, keepdim=True)).exp()
    out = (p.half().float() @ v) / p.sum(2, keepdim=True)
    return out.half().float(), z.logsumexp(2)


def loss_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    rows = student.shape[0] * student.shape[1]
    weights = student.new_full((rows,), 1.0 / (rows * len(student)))
    value = relational_kl_symmetric(leaf, teacher, weights, temperature=0.1)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
