"""dsd against its equations."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import make_inputs, small_labels, small_loss


def residuals(output: SegmentationOutput, n: int, valid: Tensor) -> list[Tensor]:
    maps = []
    for x in (output.aux, output.feature, output.logits):
        energy = x[n].square().mean(0)[valid]
        maps.append(energy / energy.norm())
    return [(a - b) / (a - b).norm() for a, b in combinations(maps, 2)]


def gram(logits: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Of one image: 2 x 2 means over valid pixels, softmax over those, inner products of the channels."""
    pooled = []
    for i in range(0, labels.shape[0], 2):
        for j in range(0, labels.shape[1], 2):
            spots = [(a, b) for a in (i, i + 1) for b in (j, j + 1) if int(labels[a, b]) != -1]
            if spots:
                pooled.append(torch.stack([logits[:, a, b] for a, b in spots]).mean(0))
    probability = torch.softmax(torch.stack(pooled, 1) / tau, 1)
    return probability @ probability.T


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    labels = small_labels(inputs)
    psd = [[], [], []]
    csd = []
    for n in range(len(labels)):
        valid = labels[n] != -1
        pairs = zip(residuals(inputs.student, n, valid), residuals(inputs.teacher, n, valid), strict=True)
        for values, (a, b) in zip(psd, pairs, strict=True):
            values.append((a - b).square())
        grams = (gram(output.logits[n], labels[n], 4.0) for output in (inputs.student, inputs.teacher))
        csd.append((next(grams) - next(grams)).square().mean())
    per_pair = [torch.cat(values).mean() for values in psd]
    return {"psd": torch.stack(per_pair).mean(), "csd": torch.stack(csd).mean()}


def test_without_auxiliary_head_the_logits_stand_in() -> None:
    inputs = make_inputs()
    student, teacher = (o._replace(aux=None) for o in (inputs.student, inputs.teacher))
    twice = [o._replace(aux=o.logits) for o in (inputs.student, inputs.teacher)]
    loss = small_loss("dsd", active=frozenset({"psd"}))
    a = loss(LossInputs(student, teacher, inputs.labels))["psd"]
    b = loss(LossInputs(*twice, inputs.labels))["psd"]
    assert torch.equal(a, b)
    assert bool(a.isfinite())


def test_student_without_auxiliary_head_learns_from_a_teacher_with_one() -> None:
    """Where first and last map are one, the gradient of float32 must not drown in that pair's."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        # The same numbers in both types: drawn in the smaller one.
        inputs = make_inputs(dtype=torch.float32)
        logits = inputs.student.logits.detach().to(dtype).requires_grad_()
        student = SegmentationOutput(logits, None, inputs.student.feature.detach().to(dtype))
        teacher = SegmentationOutput(*(t.to(dtype) for t in inputs.teacher[:3]))
        loss = small_loss("dsd", active=frozenset({"psd"})).to(dtype)
        loss(LossInputs(student, teacher, inputs.labels))["psd"].backward()
        assert logits.grad is not None
        gradients.append(logits.grad.double())
    assert float(gradients[1].abs().max()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
