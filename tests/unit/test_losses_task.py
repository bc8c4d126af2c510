"""The supervised term."""

from __future__ import annotations

import math

import pytest
import torch

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.task import TaskLoss
from cirkd_ray.types import SegmentationOutput
from tests.errors import refuses


def output(aux: bool = True) -> SegmentationOutput:
    torch.manual_seed(0)
    logits, second = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return SegmentationOutput(logits, second if aux else None, torch.zeros(2, 1, 4, 5))


def test_named_terms_by_hand() -> None:
    labels = torch.randint(-1, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    out = output()
    terms = TaskLoss()(out, labels)
    assert set(terms) == {"task", "task_aux"}
    for name, logits in (("task", out.logits), ("task_aux", out.aux)):
        values = []
        for n, i, j in (labels != -1).nonzero().tolist():
            scores = logits[n, :, i, j].tolist()
            values.append(math.log(sum(map(math.exp, scores))) - scores[int(labels[n, i, j])])
        assert terms[name].item() == pytest.approx(sum(values) / len(values))
    assert set(TaskLoss()(output(aux=False), labels)) == {"task"}


@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampling(align_corners: bool) -> None:
    labels, out = torch.zeros(2, 8, 15, dtype=torch.int64), output(aux=False)
    large = torch.nn.functional.interpolate(out.logits, (8, 15), mode="bilinear", align_corners=align_corners)
    expected = torch.nn.functional.cross_entropy(large, labels)
    torch.testing.assert_close(TaskLoss(align_corners=align_corners)(out, labels)["task"], expected)


def test_all_ignored_is_zero_and_differentiable() -> None:
    out = output()
    total = sum(TaskLoss()(out, torch.full((2, 8, 10), -1)).values())
    assert total.item() == 0.0
    total.backward()
    assert out.logits.grad is not None
    assert not bool(out.logits.grad.any())


def test_label_above_the_class_count() -> None:
    with refuses("task loss", ConfigError, "label 3", "3 classes"):
        TaskLoss()(output(), torch.full((2, 8, 10), 3))
