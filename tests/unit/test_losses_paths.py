"""Which kernels compute relations, and in which arithmetic."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cirkd_ray.losses import paths, symmetric
from cirkd_ray.losses.attention import Relation
from cirkd_ray.losses.paths import Relations, compare, products
from tests.contract.loss_cases import make_inputs, small_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BOUNDS = (1e-3, 1e-2)


def relation(width: int = 4, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Relation:
    q_s, k_s = (
        torch.zeros(s, dtype=dtype, device=device, requires_grad=True)
        for s in ((2, 5, width), (2, 3, 4, width))
    )
    q_t, k_t = (torch.zeros(s, dtype=dtype, device=device) for s in ((2, 5, 6), (2, 3, 4, 6)))
    return Relation(q_s, q_t, k_s, k_t, torch.ones(2, 5, device=device), None)


def plain(r: Relation) -> Tensor:
    return (r.q_s.square().sum() + r.k_s.sum()) * 2.0


def slow(r: Relation) -> Tensor:
    time.sleep(0.02)
    return plain(r)


def fails(r: Relation) -> Tensor:
    raise RuntimeError("no such kernel\nand a long trace")


def test_a_sample_has_unit_vectors_in_the_shapes_of_one_group() -> None:
    sample = relation(width=7).sample(3)
    assert [tuple(x.shape) for x in sample[:5] if x is not None] == [
        (1, 3, 7),
        (1, 3, 6),
        (1, 1, 3, 7),
        (1, 1, 3, 6),
        (1, 3),
    ]
    torch.testing.assert_close(sample.k_s.norm(dim=-1), torch.ones(1, 1, 3))
    state = torch.get_rng_state()
    relation().sample(3)
    assert torch.equal(state, torch.get_rng_state())  # a run's random choices are its own


def test_the_faster_path_is_taken_if_it_is_right() -> None:
    sample = relation().sample(3)
    assert compare(sample, plain, slow, BOUNDS).fused
    assert not compare(sample, slow, plain, BOUNDS).fused


@pytest.mark.parametrize(
    ("fused", "why"),
    [
        (fails, "the fused kernels failed: no such kernel"),
        (lambda r: plain(r) * 1.005, "more than 1e-03 and 1e-02"),
        (lambda r: plain(r) + 0.1 * (r.q_s.sum() - r.q_s.sum().detach()), "more than 1e-03 and 1e-02"),
        (lambda r: plain(r) * float("nan"), "more than 1e-03 and 1e-02"),
    ],
    ids=["failing", "wrong value", "wrong gradient", "nan"],
)
def test_a_path_that_fails_or_is_wrong_is_not_taken(fused: paths.Compute, why: str) -> None:
    found = compare(relation().sample(3), fused, slow, BOUNDS)
    assert not found.fused
    assert why in found.why
    assert "\n" not in found.why


def test_cpus_take_tiles_whatever_is_set() -> None:
    for path in ("auto", "fused", "tiles"):
        assert not Relations(path=path).is_fused(relation(), fails, fails)  # type: ignore[arg-type]
    assert Relations(precision="bf16").arithmetic(CPU, False) == "fp32"


@pytest.fixture
def on_cuda() -> Relation:
    """A relation whose tensors say that they are on a CUDA device."""

    class Claims(torch.Tensor):
        device = CUDA

    found = relation()
    return found._replace(q_s=found.q_s.detach().as_subclass(Claims))  # type: ignore[arg-type]


def test_a_path_can_be_forced(on_cuda: Relation) -> None:
    assert Relations(path="fused").is_fused(on_cuda, fails, fails)
    assert not Relations(path="tiles").is_fused(on_cuda, fails, fails)
    assert not Relations(deterministic=True).is_fused(on_cuda, fails, fails)
    wide = on_cuda._replace(q_t=torch.zeros(2, 5, 512))
    assert not Relations(path="fused").is_fused(wide, fails, fails)


def test_the_first_relation_of_a_kind_is_compared_once_and_said(
    on_cuda: Relation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sample = relation().sample(3)
    monkeypatch.setattr(Relation, "sample", lambda self, tokens: sample)
    calls = []

    def counted(r: Relation) -> Tensor:
        calls.append(r)
        return plain(r)

    relations = Relations()
    with caplog.at_level(logging.WARNING):
        assert relations.is_fused(on_cuda, counted, slow)
        first = len(calls)
        assert relations.is_fused(on_cuda, counted, slow)
    assert first > 0
    assert len(calls) == first
    assert "relations of 4/6 channels: fused (" in caplog.text
    assert caplog.text.count("relations of") == 1


@pytest.mark.parametrize(
    ("precision", "deterministic", "fused", "tiles"),
    [
        ("auto", False, "fp16", "tf32"),
        ("auto", True, "fp32", "fp32"),
        ("tf32", True, "tf32", "tf32"),
        ("bf16", False, "bf16", "bf16"),
        ("fp32", False, "fp32", "fp32"),
    ],
)
def test_precision_on_cuda(precision: str, deterministic: bool, fused: str, tiles: str) -> None:
    relations = Relations(precision=precision, deterministic=deterministic)  # type: ignore[arg-type]
    assert relations.arithmetic(CUDA, True) == fused
    assert relations.arithmetic(CUDA, False) == tiles


def test_products_leave_the_setting_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    with products("tf32", CUDA):
        assert torch.get_float32_matmul_precision() == "high"
        with products("fp32", CUDA):
            assert torch.get_float32_matmul_precision() == "highest"
    with products("tf32", CPU):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before


def test_losses_hand_their_relations_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recipe sets reaches every relational term."""
    seen: list[Relations] = []

    def looked_at(self: Relations, *_: object) -> bool:
        seen.append(self)
        return False

    monkeypatch.setattr(Relations, "is_fused", looked_at)
    monkeypatch.setattr(symmetric, "WIDEST", 0.0)  # the form of devices other than CPUs
    mine = Relations(precision="tf32")
    for kind in ("cirkd_minibatch", "cirkd_memory", "cirkd_channel", "cirkd_v2"):
        seen.clear()
        small_loss(kind)(replace(make_inputs(), relations=mine))
        assert seen
        assert all(relations is mine for relations in seen), kind
