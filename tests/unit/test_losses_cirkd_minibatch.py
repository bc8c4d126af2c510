"""cirkd_minibatch against its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import make_inputs, small_labels, small_loss

JOINED = {"gather": True}


def relation(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """softmax over b's rows of cosine similarities / tau."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    return torch.softmax(a @ b.T / tau, 1)


def row_divergences(student: list[Tensor], teacher: list[Tensor], tau: float) -> list[Tensor]:
    """For each image the KL of each of its rows, mean over the images that it is compared with."""
    images = range(len(student))
    result = []
    for i in images:
        rows = []
        for j in images:
            p, q = relation(teacher[i], teacher[j], tau), relation(student[i], student[j], tau)
            rows.append((p * (p / q).log()).sum(1))
        result.append(torch.stack(rows).mean(0))
    return result


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    labels = small_labels(inputs)
    student, teacher = (
        [o.feature[n][:, labels[n] != -1].T for n in range(len(labels))]
        for o in (inputs.student, inputs.teacher)
    )
    return {"minibatch_pixel": torch.cat(row_divergences(student, teacher, 0.1)).mean()}


def test_unmasked_is_the_mean_over_all_rows_and_pairs() -> None:
    inputs = make_inputs()
    student, teacher = ([x.flatten(1).T for x in o.feature] for o in (inputs.student, inputs.teacher))
    expected = torch.cat(row_divergences(student, teacher, 0.1)).mean()
    value = small_loss("cirkd_minibatch", mask_ignored=False)(inputs)["minibatch_pixel"]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_pooling_with_a_mask_counts_what_holds_a_valid_pixel() -> None:
    inputs = make_inputs()
    labels = inputs.labels.clone()
    labels[:, :8, :8] = -1  # the first pooled pixel of each image: nothing in it counts
    pooled = [torch.nn.functional.avg_pool2d(o.feature, 2) for o in (inputs.student, inputs.teacher)]
    small = labels[:, ::4, ::4].reshape(2, 3, 2, 4, 2)
    valid = (small != -1).any(4).any(2)
    assert not bool(valid[:, 0, 0].any())
    student, teacher = ([x[n][:, valid[n]].T for n in range(2)] for x in pooled)
    expected = torch.cat(row_divergences(student, teacher, 0.1)).mean()
    loss = small_loss("cirkd_minibatch", pool=2)
    value = loss(LossInputs(inputs.student, inputs.teacher, labels))["minibatch_pixel"]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
