"""BatchNorm over two gloo ranks is BatchNorm of the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from cirkd_ray.train.batchnorm import SynchronisedBatchNorm, synchronised
from cirkd_ray.train.distributed import World
from tests.distributed.gloo import run_ranks

IMAGES, CHANNELS = 4, 3


def network(kind: type[nn.BatchNorm2d]) -> nn.Sequential:
    """Two norms, with weights that are not their first ones."""
    torch.manual_seed(1)
    norms = [kind(CHANNELS, momentum=0.3), kind(CHANNELS)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0)
        nn.init.normal_(norm.bias)
    return nn.Sequential(norms[0], nn.Conv2d(CHANNELS, CHANNELS, 3), norms[1]).double()


def trained(kind: type[nn.BatchNorm2d]) -> dict[str, Tensor]:
    """Output, gradients and statistics of this rank's share of the batch; of the whole one without ranks."""
    world = World.current()
    generator = torch.Generator().manual_seed(2)
    images = 5 + 3 * torch.randn(IMAGES, CHANNELS, 6, 7, generator=generator, dtype=torch.float64)
    share = IMAGES // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    local = images[mine].requires_grad_()
    model = network(kind)
    if world.size > 1:
        model = synchronised(model)  # type: ignore[assignment]
        assert sum(isinstance(m, SynchronisedBatchNorm) for m in model.modules()) == 2
    out = model(local)
    (
        out * torch.linspace(-1, 1, IMAGES * 60, dtype=torch.float64).view(IMAGES, 3, 4, 5)[mine]
    ).sin().sum().backward()
    found = {"out": out.detach(), "grad": local.grad}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    found |= {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    model.eval()
    return {**found, "evaluated": model(images).detach()}


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_two_ranks_are_the_joined_batch(kind: type[nn.BatchNorm2d], tmp_path: Path) -> None:
    one = trained(kind)
    first, second = run_ranks(trained, 2, tmp_path, kind)
    assert one.keys() == first.keys()
    for name, expected in one.items():
        if name in ("out", "grad"):
            found = torch.cat((first[name], second[name]))
        elif name.startswith("grad."):  # of this rank's pixels: DDP adds them up
            found = first[name] + second[name]
        else:
            found = first[name]
            assert torch.equal(found, second[name]), name
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_names_in_state_dicts_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3), nn.Sequential(nn.BatchNorm2d(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = synchronised(model).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
