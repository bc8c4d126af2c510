"""The adversarial loss, its discriminator, and the number of times that it runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.losses.discriminator import Discriminator
from tests.contract.loss_cases import make_inputs, small_labels, small_loss

SETTINGS = {"width": 2}


def masked(x: Tensor, inputs: LossInputs) -> Tensor:
    return x * (small_labels(inputs) != -1).unsqueeze(1)


def frozen_loss(objective: str = "hinge") -> DistillationLoss:
    """As the engine holds it between steps: the discriminator's parameters do not require gradients."""
    loss = small_loss("adversarial", objective=objective)
    loss.discriminator.requires_grad_(False)
    return loss


def naive_discriminator_loss(loss: DistillationLoss, inputs: LossInputs, objective: str) -> Tensor:
    maps = (masked(x.logits.detach(), inputs) for x in (inputs.student, inputs.teacher))
    fake, real = (loss.discriminator(x) for x in maps)
    if objective == "hinge":
        return 0.1 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    return 0.1 * (fake.mean() - real.mean())


@pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])
def test_discriminator_gradients_are_those_of_separate_runs(objective: str) -> None:
    loss, inputs = frozen_loss(objective), make_inputs()
    loss.penalty = 0.0
    other = copy.deepcopy(loss)
    loss(inputs)["adversarial"].backward()
    assert all(p.grad is None for p in loss.discriminator.parameters())
    assert not any(p.requires_grad for p in loss.discriminator.parameters())
    for module in (loss, other):
        module.discriminator.requires_grad_(True)
    value, expected = loss.discriminator_loss(inputs), naive_discriminator_loss(other, inputs, objective)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    for mine, theirs in zip(loss.discriminator.parameters(), other.discriminator.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-10)


def test_discriminator_runs_twice_a_step() -> None:
    loss, inputs = frozen_loss(), make_inputs()
    runs: list[int] = []
    loss.discriminator.register_forward_hook(lambda *_: runs.append(1))
    loss(inputs)["adversarial"].backward()
    loss.discriminator.requires_grad_(True)
    loss.discriminator_loss(inputs).backward()
    assert len(runs) == 2


def test_discriminator_loss_needs_its_forward() -> None:
    loss, inputs = frozen_loss(), make_inputs()
    with pytest.raises(RuntimeError, match=r"call forward"):
        loss.discriminator_loss(inputs)
    loss(inputs)
    with pytest.raises(RuntimeError, match=r"same inputs"):
        loss.discriminator_loss(make_inputs(step=1))


def test_gradient_penalty_is_zero_for_unit_slope() -> None:
    loss, inputs = small_loss("adversarial", objective="wgan-gp"), make_inputs()

    class Slope(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1).sum(1) / x[0].numel() ** 0.5).view(-1, 1, 1, 1)

    loss.opponent = Slope()  # the attribute behind `discriminator`
    loss(inputs)
    value = loss.discriminator_loss(inputs)
    torch.testing.assert_close(
        value, naive_discriminator_loss(loss, inputs, "wgan-gp"), rtol=1e-6, atol=1e-12
    )


def test_discriminator_learns_to_tell_the_maps_apart() -> None:
    torch.manual_seed(0)
    loss, inputs = frozen_loss(), make_inputs()
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), **loss.discriminator_optimizer())
    values = []
    for _ in range(25):
        loss(inputs)
        loss.discriminator.requires_grad_(True)
        value = loss.discriminator_loss(inputs)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.discriminator.requires_grad_(False)
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_discriminator_shapes() -> None:
    model = Discriminator(5, width=4)
    assert model(torch.randn(2, 5, 64, 128)).shape == (2, 1, 1, 5)
    assert model(torch.randn(2, 5, 9, 70)).shape == (2, 1, 1, 1)
    widths = [m.out_channels for m in model.layers if isinstance(m, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 1]


def test_checkpoints_hold_the_discriminator_by_its_older_name() -> None:
    loss = small_loss("adversarial")
    assert loss.discriminator is loss.opponent
    assert all(name.startswith("opponent.layers.") for name in loss.state_dict())
