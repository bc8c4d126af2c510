"""Updates, averages and optimisers that ask nothing of the device."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cirkd_ray.config import OptimSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import choose_precision
from cirkd_ray.models.blocks import DeterministicBicubic, adaptive_average_pool, pool_by_products
from cirkd_ray.train.average import StudentAverage
from cirkd_ray.train.build import build_run
from cirkd_ray.train.distributed import World
from cirkd_ray.train.optim import build_optimizer, load_optimizer
from cirkd_ray.train.step import NEVER
from cirkd_ray.train.update import FiniteUpdate
from tests.tinyrun import tiny_distillation


def layer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    linear = nn.Linear(3, 2)
    return linear, torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_moves_no_weight(factor: float) -> None:
    """Even where its gradient, taken alone, is finite."""
    linear, optimizer = layer()
    update = FiniteUpdate("fp32", torch.device("cpu"))
    before = copy.deepcopy(linear.state_dict())
    update.backward(linear(torch.ones(1, 3)).sum() + factor, 1.0)
    update.step(optimizer)
    assert all(torch.equal(before[name], value) for name, value in linear.state_dict().items())
    assert not optimizer.state


def test_a_gradient_that_is_not_finite_moves_no_weight() -> None:
    linear, optimizer = layer()
    update = FiniteUpdate("bf16", torch.device("cpu"))
    before = linear.weight.detach().clone()
    update.backward(linear(torch.ones(1, 3)).sum(), 1.0)
    assert linear.bias.grad is not None
    linear.bias.grad[0] = float("inf")
    update.step(optimizer)
    assert torch.equal(before, linear.weight)


def test_finite_gradients_are_those_of_plain_backward() -> None:
    (one, first), (other, second) = layer(), layer()
    update = FiniteUpdate("fp32", torch.device("cpu"))
    for _ in range(2):
        images = torch.randn(4, 3)
        first.zero_grad()
        second.zero_grad()
        update.backward(one(images).square().sum(), 0.25)
        update.step(first)
        (other(images).square().sum() * 0.25).backward()
        second.step()
    assert torch.equal(one.weight, other.weight)


def test_the_step_remembers_the_term_and_keeps_the_weights(teacher: Path) -> None:
    run = build_run(tiny_distillation(teacher), World())
    images = torch.zeros(2, 3, 32, 64, dtype=torch.uint8)
    batch = DeviceBatch(images, torch.zeros(2, 32, 64, dtype=torch.int64), None, torch.arange(2))
    run.step.distiller.train()
    run.step(0, [run.shared(batch)])
    assert all(int(step) == NEVER for step in run.step.nonfinite.first.values())
    before = [p.detach().clone() for p in run.student.parameters()]
    handle = run.student.register_forward_hook(
        lambda _, inputs, out: out._replace(logits=out.logits * float("nan"))
    )
    run.step(1, [run.shared(batch)])
    handle.remove()
    assert int(run.step.nonfinite.first["task"]) == int(run.step.nonfinite.first["total"]) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True))


def test_the_average_is_that_of_torch() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averaging = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    theirs = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    ours = StudentAverage(student, 0.9)
    for _ in range(3):
        student(torch.randn(5, 3))
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += torch.randn_like(parameter)
        theirs.update_parameters(student)
        ours.update_parameters(student)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        if value.is_floating_point() or name == "n_averaged":
            assert torch.equal(found[name], value), name
    StudentAverage(student, 0.9).load_state_dict(expected)


def test_an_optimizer_keeps_its_own_kernels_when_it_loads_a_state() -> None:
    """Fused is a matter of the device, not of the checkpoint."""
    spec = OptimSpec(name="sgd")
    (one, _), (other, _) = layer(), layer()
    first, second = (build_optimizer([{"params": [*m.parameters()]}], spec) for m in (one, other))
    one(torch.ones(1, 3)).sum().backward()
    first.step()
    state = first.state_dict()
    state["param_groups"][0]["fused"] = True
    load_optimizer(second, state)
    assert second.param_groups[0]["fused"] is None
    kept: list[Tensor] = [second.state[p]["momentum_buffer"] for p in other.parameters()]
    assert torch.equal(kept[0], first.state[one.weight]["momentum_buffer"])


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_no_emulated_bf16(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_by_products_is_adaptive_pooling(bins: int) -> None:
    x = torch.randn(2, 3, 13, 17, dtype=torch.float64)
    torch.testing.assert_close(pool_by_products(x, bins), adaptive_average_pool(x, bins))
    low = pool_by_products(x.bfloat16(), bins)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), adaptive_average_pool(x, bins), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(9, 4), (3, 12)])
def test_bicubic_by_products_is_bicubic_resizing(size: tuple[int, int], antialias: bool) -> None:
    """Also that timm's position embeddings take that way while the mode is active."""
    found = []
    for by_products in (False, True):
        x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        with DeterministicBicubic() if by_products else nullcontext():
            out = functional.interpolate(x, size=size, mode="bicubic", antialias=antialias)
        (gradient,) = torch.autograd.grad(out.sin().sum(), x)
        found.append((out, gradient, str(out.grad_fn)))
    torch.testing.assert_close(found[0][:2], found[1][:2])
    assert "Upsample" in found[0][2]
    assert "Upsample" not in found[1][2]
    tokens = torch.randn(1, 37, 8, requires_grad=True)
    with DeterministicBicubic():
        tables = resample_abs_pos_embed(tokens, [3, 12])
    torch.testing.assert_close(tables, resample_abs_pos_embed(tokens, [3, 12]))
