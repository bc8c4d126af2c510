"""kd against its equation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import make_inputs, small_labels, small_loss

SETTINGS = {"temperature": 2.0}


def softmax(x: list[float]) -> list[float]:
    exp = [math.exp(v - max(x)) for v in x]
    return [v / sum(exp) for v in exp]


def pixels(inputs: LossInputs, name: str = "logits") -> list[tuple[list[float], list[float], int]]:
    """(student, teacher, label) of every valid pixel, as plain numbers."""
    student, teacher, labels = inputs.student.tap(name), inputs.teacher.tap(name), small_labels(inputs)
    n, _, h, w = student.shape
    spots = [(i, y, x) for i in range(n) for y in range(h) for x in range(w) if int(labels[i, y, x]) != -1]
    return [
        (student[i, :, y, x].tolist(), teacher[i, :, y, x].tolist(), int(labels[i, y, x]))
        for i, y, x in spots
    ]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    tau = SETTINGS["temperature"]
    values = [kl(softmax([v / tau for v in t]), softmax([v / tau for v in s])) for s, t, _ in pixels(inputs)]
    return {"kd": torch.tensor(tau**2 * sum(values) / len(values), dtype=torch.float64)}


def test_logit_standardisation_ignores_scale_and_shift() -> None:
    inputs = make_inputs()
    loss = small_loss("kd", logit_std=True)
    moved = inputs.student._replace(logits=inputs.student.logits * 3.0 + 5.0)
    a, b = (loss(LossInputs(s, inputs.teacher, inputs.labels))["kd"] for s in (inputs.student, moved))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_logit_standardisation_by_hand() -> None:
    def z(x: list[float]) -> list[float]:
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x))
        return [(v - mean) / deviation / 2.0 for v in x]

    inputs = make_inputs()
    values = [kl(softmax(z(t)), softmax(z(s))) for s, t, _ in pixels(inputs)]
    expected = torch.tensor(4.0 * sum(values) / len(values), dtype=torch.float64)
    value = small_loss("kd", logit_std=True)(inputs)["kd"]
    torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-9)
