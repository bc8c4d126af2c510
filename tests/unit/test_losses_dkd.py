"""dkd against its equations."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.unit.test_losses_kd import kl, pixels, softmax

SETTINGS = {"temperature": 2.0}


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    tau = SETTINGS["temperature"]
    target, others = [], []
    for s, t, label in pixels(inputs):
        p, q = (softmax([v / tau for v in x]) for x in (t, s))
        target.append(kl([p[label], 1 - p[label]], [q[label], 1 - q[label]]))
        rest = [[v for k, v in enumerate(x) if k != label] for x in (p, q)]
        others.append(kl(*([v / sum(x) for v in x] for x in rest)))
    means = (torch.tensor(tau**2 * sum(v) / len(v), dtype=torch.float64) for v in (target, others))
    return {"tckd": next(means), "nckd": next(means)}


def test_the_parts_make_up_kd() -> None:
    """The paper's eq. 7: KD = TCKD + (1 - p_target of the teacher) NCKD, per pixel."""
    from tests.contract.loss_cases import make_inputs

    s, t, label = pixels(make_inputs())[0]
    p, q = softmax(t), softmax(s)
    binary = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    rest = [[v for k, v in enumerate(x) if k != label] for x in (p, q)]
    others = kl(*([v / sum(x) for v in x] for x in rest))
    assert abs(kl(p, q) - binary - (1 - p[label]) * others) < 1e-12
