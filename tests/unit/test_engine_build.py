"""From a recipe to the objects of a rank."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cirkd_ray.engine.build import build_run, synchronise_batchnorm
from cirkd_ray.engine.distributed import World
from tests.tinyrun import tiny_distillation


def test_batchnorm_is_synchronised_but_in_opponents(teacher: Path) -> None:
    """A gradient penalty differentiates twice through the discriminator; SyncBatchNorm has one derivative."""
    losses = {
        "critic": {"kind": "adversarial", "objective": "wgan-gp", "width": 2},
        "memory": {"kind": "cirkd_memory"},
    }
    distiller = build_run(tiny_distillation(teacher, distill={"losses": losses}), World()).step.distiller
    opponent = distiller.opponents()[0][1].opponent
    names = list(distiller.state_dict())
    synchronise_batchnorm(distiller)
    assert list(distiller.state_dict()) == names
    for part in (distiller.student, distiller.losses["memory"]):
        norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert distiller.opponents()[0][1].opponent is opponent is not None
    kept = [type(m) for m in opponent.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kept == [nn.BatchNorm2d]
