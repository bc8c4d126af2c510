"""What the losses of a step make once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses import reduce
from cirkd_ray.losses.maps import unit
from tests.contract.loss_cases import make_inputs, small_loss


def doubled(x: Tensor, factor: int) -> Tensor:
    return x * 2 * factor


def test_losses_that_ask_for_the_same_of_the_same_tensor_share_it() -> None:
    inputs, x = make_inputs(), torch.ones(3)
    assert inputs.shared(doubled, x, 2) is inputs.shared(doubled, x, 2)
    assert inputs.shared(doubled, x, 3) is not inputs.shared(doubled, x, 2)
    assert inputs.shared(doubled, x.clone(), 2) is not inputs.shared(doubled, x, 2)
    assert make_inputs().shared(doubled, x, 2) is not inputs.shared(doubled, x, 2)


def test_what_has_a_history_is_made_for_each() -> None:
    inputs, x = make_inputs(), torch.ones(3, requires_grad=True)
    for _ in range(2):
        inputs.shared(unit, x.unsqueeze(0)).sum().backward()
    with torch.no_grad():
        assert not inputs.shared(doubled, x, 2).requires_grad
    assert inputs.shared(doubled, x, 2).requires_grad


def test_valid_pixels_are_counted_over_ranks_once_for_all_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(reduce, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(reduce.dist, "all_reduce", asked.append)
    inputs = make_inputs()
    for temperature in (1.0, 4.0):
        small_loss("kd", temperature=temperature)(inputs)
    small_loss("cirkd_minibatch", group="rank", student_tap="logits", teacher_tap="logits")(inputs)
    assert len(asked) == 1


@pytest.mark.parametrize("dim", [1, 2])
def test_unit_vectors_and_their_gradients_are_those_of_normalize(dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    x[0, :, 0] = 0.0
    x[0, 1, :] = 0.0
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    along = torch.randn_like(x)
    (unit(found, dim) * along).sum().backward()
    (F.normalize(wanted, dim=dim) * along).sum().backward()
    torch.testing.assert_close(unit(x, dim), F.normalize(x, dim=dim))
    torch.testing.assert_close(found.grad, wanted.grad)
