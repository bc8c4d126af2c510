"""The supervised losses beside straightforward recomputations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cirkd_ray.config import from_tree
from cirkd_ray.config.registry import TASK_LOSSES
from cirkd_ray.config.schema import json_schema
from cirkd_ray.data.frequencies import class_shares
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses.reduce import mask_scale
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.errors import refuses
from tests.tiny import RandomSet
from tests.tinyrun import tiny_baseline, tiny_tree

CLASSES = 4
SHARES = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
KINDS = TASK_LOSSES.names()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(3, CLASSES, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(-1, CLASSES - 1, (3, 5, 6), generator=generator)  # the last class never occurs
    return logits.requires_grad_(), labels


def loss(kind: str, logits: Tensor, labels: Tensor, **settings: object) -> Tensor:
    built = TASK_LOSSES.build(kind, {"num_classes": CLASSES, "shares": SHARES}, settings)
    return built(logits, labels, mask_scale(labels != -1))  # type: ignore[no-any-return]


def pixels(logits: Tensor, labels: Tensor) -> list[list[tuple[int, float]]]:
    """Label and probability of that label of each labelled pixel, an image at a time."""
    found = []
    for scores, truth in zip(logits.detach().softmax(1), labels, strict=True):
        places = (truth != -1).nonzero().tolist()
        found.append([(int(truth[i, j]), float(scores[int(truth[i, j]), i, j])) for i, j in places])
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_focal() -> None:
    logits, labels = inputs()
    flat = [pair for image in pixels(logits, labels) for pair in image]
    expected = mean([-((1 - p) ** 1.5) * math.log(p) for _, p in flat])
    assert loss("focal", logits, labels, gamma=1.5).item() == pytest.approx(expected)
    plain = loss("cross_entropy", logits, labels)
    torch.testing.assert_close(loss("focal", logits, labels, gamma=0.0), plain)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "ohem"])
def test_class_weights(kind: str) -> None:
    logits, labels = inputs()
    given = [1 / (4 * 0.7), 1 / (4 * 0.2), 1 / (4 * 0.1), 1.0]
    torch.testing.assert_close(
        loss(kind, logits, labels, class_weights="balanced"), loss(kind, logits, labels, class_weights=given)
    )
    if kind == "cross_entropy":
        flat = [pair for image in pixels(logits, labels) for pair in image]
        expected = mean([-given[k] * math.log(p) for k, p in flat])
        assert loss(kind, logits, labels, class_weights=given).item() == pytest.approx(expected)
    with refuses("class_weights", ConfigError, "2 numbers", "4 classes"):
        loss(kind, logits, labels, class_weights=[1.0, 2.0])


@pytest.mark.parametrize(("threshold", "least"), [(0.3, 0.1), (1e-6, 0.4), (1.0, 0.1)])
def test_ohem(threshold: float, least: float) -> None:
    logits, labels = inputs()
    kept = []
    for image in pixels(logits, labels):
        ordered = sorted(p for _, p in image)
        count = max(math.ceil(len(ordered) * least), sum(p <= threshold for p in ordered))
        kept += [-math.log(p) for p in ordered[:count]]
    found = loss("ohem", logits, labels, threshold=threshold, least=least)
    assert found.item() == pytest.approx(mean(kept))


def test_dice() -> None:
    logits, labels = inputs()
    images = []
    for scores, truth in zip(logits.detach().softmax(1).numpy(), labels.numpy(), strict=True):
        valid = truth != -1
        values = []
        for k in np.unique(truth[valid]):
            p, y = scores[k][valid], (truth[valid] == k).astype(float)
            values.append(1 - (2 * (p * y).sum() + 0.5) / (p.sum() + y.sum() + 0.5))
        images.append(mean(values))
    assert loss("dice", logits, labels, smooth=0.5).item() == pytest.approx(mean(images))


def test_lovasz() -> None:
    """By its definition: errors in falling order, each times what its pixel adds to 1 - IoU."""
    logits, labels = inputs()
    images = []
    for scores, truth in zip(logits.detach().softmax(1).numpy(), labels.numpy(), strict=True):
        valid = truth != -1
        values = []
        for k in np.unique(truth[valid]):
            y = truth[valid] == k
            errors = np.abs(y - scores[k][valid])
            order, wrong, before, total = np.argsort(-errors), np.zeros(len(y), bool), 0.0, 0.0
            for place in order:
                wrong[place] = True
                jaccard = 1 - (y & ~wrong).sum() / (y | wrong).sum()
                total, before = total + errors[place] * (jaccard - before), jaccard
            values.append(total)
        images.append(mean(values))
    assert loss("lovasz", logits, labels).item() == pytest.approx(mean(images))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    """Ignored pixels do not count; without others it is 0; so it is where all is right; it learns."""
    logits, labels = inputs()
    found = loss(kind, logits, labels)
    found.backward()
    assert found.item() > 0.1
    assert logits.grad is not None
    assert not logits.grad.permute(0, 2, 3, 1)[labels == -1].any()
    with torch.no_grad():
        other = torch.where((labels == -1).unsqueeze(1), 7.0 * torch.rand_like(logits), logits)
        torch.testing.assert_close(loss(kind, other, labels), found)
        right = 40 * torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES).permute(0, 3, 1, 2).double()
        assert loss(kind, right, labels).item() < 1e-6
        lower = loss(kind, logits - 0.1 * logits.grad / logits.grad.abs().max(), labels)
        assert lower < found
    none = loss(kind, logits, torch.full_like(labels, -1))
    none.backward()
    assert none.item() == 0.0
    halves = [loss(kind, logits[i : i + 1], labels[i : i + 1]).item() for i in range(3)]
    if kind in ("dice", "lovasz"):
        assert found.item() == pytest.approx(mean(halves))


def test_shares_of_a_split() -> None:
    shares = class_shares(RandomSet(7))
    counts = np.bincount(np.concatenate([RandomSet(7).load(i).label.ravel() for i in range(7)]))[:4]
    np.testing.assert_allclose(shares.numpy(), counts / counts.sum())


def test_settings() -> None:
    tree = tiny_tree(task={"losses": {"ce": {"class_weights": "balanced"}, "overlap": {"kind": "dice"}}})
    losses = from_tree(tree).to_dict()["task"]["losses"]
    assert losses["ce"] == {"kind": "cross_entropy", "weight": 1.0, "class_weights": "balanced"}
    assert losses["overlap"] == {"kind": "dice", "weight": 1.0, "smooth": 1.0}
    assert from_tree(tiny_tree()).to_dict()["task"]["losses"] == {
        "task": {"kind": "cross_entropy", "weight": 1.0, "class_weights": None}
    }
    with refuses("task.losses.a.kind", ConfigError, "'dise'", "'dice'"):
        from_tree(tiny_tree(task={"losses": {"a": {"kind": "dise"}}}))
    with refuses("task.losses.a.gama", ConfigError, "'gamma'"):
        from_tree(tiny_tree(task={"losses": {"a": {"kind": "focal", "gama": 1}}}))
    with refuses("task.losses", ConfigError, "no loss"):
        from_tree(tiny_tree(task={"losses": {"task": None}}))
    kinds = json_schema()["$defs"]["TaskLossSpec"]["properties"]["kind"]["anyOf"][0]["enum"]
    assert kinds == KINDS


def test_a_run_with_all_of_them(tmp_path: Path) -> None:
    losses = {kind: {"kind": kind, "weight": 0.5} for kind in KINDS}
    losses["ohem"]["class_weights"] = "balanced"
    spec = tiny_baseline(task={"losses": losses}, model={"aux": True}, train={"steps": 2})
    directory = RunDirectory(tmp_path / "run")
    open_directory(directory, spec, resume=False)
    run_local(spec, directory)
    row = directory.read_metrics()[0]
    assert {f"loss/{kind}{end}" for kind in KINDS for end in ("", "_aux")} <= row.keys(), row.keys()
    assert row["loss/total"] == pytest.approx(
        sum(0.5 * (row[f"loss/{kind}"] + 0.4 * row[f"loss/{kind}_aux"]) for kind in KINDS), rel=1e-5
    )
