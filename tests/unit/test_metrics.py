"""The confusion matrix against a count pixel by pixel, and the scores against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cirkd_ray.evaluate import metrics
from cirkd_ray.evaluate.metrics import ConfusionMatrix


def naive(prediction, labels, classes, ignore=-1):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(prediction.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if t != ignore and 0 <= t < classes and 0 <= p < classes:
            matrix[t, p] += 1
    return matrix


def random_maps(classes=5, images=3, seed=0, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 7, 9)
    prediction = torch.randint(0, classes, shape, generator=generator)
    labels = torch.randint(-1, classes, shape, generator=generator)
    return prediction.to(dtype), labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_matrix_equals_a_count_pixel_by_pixel(dtype):
    confusion, expected = ConfusionMatrix(5), np.zeros((5, 5), dtype=np.int64)
    for seed in range(3):
        prediction, labels = random_maps(seed=seed, dtype=dtype)
        per_image = confusion.update(prediction, labels)
        for image in range(3):
            assert (per_image[image].numpy() == naive(prediction[image], labels[image], 5)).all()
        expected += naive(prediction, labels, 5)
    assert confusion.matrix.dtype == torch.int64
    assert (confusion.matrix.numpy() == expected).all()


def test_scores_equal_their_definitions():
    prediction, labels = random_maps(classes=4, seed=3)
    confusion = ConfusionMatrix(4)
    confusion.update(prediction, labels)
    counted = labels != -1
    ious, recalls, weighted = [], [], 0.0
    for k in range(4):
        p, t = (prediction == k) & counted, labels == k
        ious.append(int((p & t).sum()) / int((p | t).sum()))
        recalls.append(int((p & t).sum()) / int(t.sum()))
        weighted += ious[-1] * int(t.sum()) / int(counted.sum())
    assert confusion.iou().tolist() == pytest.approx(ious)
    assert confusion.miou() == pytest.approx(sum(ious) / 4)
    assert confusion.class_accuracy().tolist() == pytest.approx(recalls)
    assert confusion.mean_class_accuracy() == pytest.approx(sum(recalls) / 4)
    assert confusion.frequency_weighted_iou() == pytest.approx(weighted)
    right = int(((prediction == labels) & counted).sum())
    assert confusion.pixel_accuracy() == pytest.approx(right / int(counted.sum()))
    assert confusion.ignored == int((~counted).sum())


def test_absent_class_is_left_out_or_counts_as_zero():
    confusion = ConfusionMatrix(3)
    labels = torch.tensor([[[0, 0, 1, 1]]])
    confusion.update(torch.tensor([[[0, 0, 1, 0]]]), labels)
    assert confusion.iou()[:2].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert math.isnan(confusion.iou()[2])
    assert confusion.miou() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert confusion.miou(absent="zero") == pytest.approx((2 / 3 + 1 / 2) / 3)
    confusion.update(torch.tensor([[[2, 0, 0, 0]]]), labels)  # predicted, never true: counts as 0 either way
    assert confusion.miou() == confusion.miou(absent="zero")
    with pytest.raises(ValueError, match="'skip' or 'zero'"):
        confusion.miou(absent="no")


def test_ignored_pixels_do_not_count_even_where_the_prediction_is_odd():
    confusion = ConfusionMatrix(3, ignore_index=255)
    confusion.update(torch.tensor([[[2, 99, 1]]]), torch.tensor([[[255, 255, 1]]]))
    assert confusion.matrix.sum() == 1
    assert confusion.matrix[1, 1] == 1
    assert (confusion.ignored, confusion.invalid) == (2, 0)


def test_values_that_are_no_class_never_corrupt_the_matrix():
    confusion = ConfusionMatrix(3)
    labels = torch.tensor([[[0, 3, 255, -7, 1, 2, 10**12]]])
    confusion.update(torch.tensor([[[0, 1, 1, 1, 3, -1, 0]]]), labels)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    expected[0, 0] = 1
    assert torch.equal(confusion.matrix, expected)
    assert confusion.invalid == 6


def test_nothing_counted_is_nan_not_a_number_that_looks_like_a_score():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), -1))
    for score in (confusion.miou(), confusion.pixel_accuracy(), confusion.frequency_weighted_iou()):
        assert math.isnan(score)


def test_counts_stay_exact_beyond_float32():
    confusion = ConfusionMatrix(2)
    zeros = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    for _ in range(17):
        confusion.update(zeros, zeros)
    confusion.update(zeros[:, :1, :1], zeros[:, :1, :1])
    assert int(confusion.matrix[0, 0]) == 17 * 2**20 + 1


def test_merge_and_reset():
    a, b, both = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    for seed, part in ((0, a), (1, b)):
        part.update(*random_maps(seed=seed))
        both.update(*random_maps(seed=seed))
    assert torch.equal(a.merge(b).matrix, both.matrix)
    a.reset()
    assert a.matrix.sum() == 0
    with pytest.raises(ValueError, match="cannot merge"):
        a.merge(ConfusionMatrix(4))


def test_reduce_without_a_process_group_changes_nothing():
    confusion = ConfusionMatrix(5)
    confusion.update(*random_maps())
    before = confusion.matrix.clone()
    assert torch.equal(confusion.reduce().matrix, before)


@pytest.mark.parametrize(
    ("prediction", "labels"),
    [((1, 4, 4), (1, 4, 5)), ((4, 4), (4, 4)), ((1, 3, 4, 4), (1, 3, 4, 4)), ((1, 4, 4), (2, 4, 4))],
)
def test_bad_shapes_are_named(prediction, labels):
    with pytest.raises(ValueError, match="N x H x W"):
        ConfusionMatrix(3).update(torch.zeros(prediction).long(), torch.zeros(labels).long())


def test_scores_instead_of_classes_are_refused():
    with pytest.raises(TypeError, match="prediction must hold integers"):
        ConfusionMatrix(3).update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4).long())


@pytest.mark.parametrize(("classes", "ignore"), [(0, -1), (3, 2)])
def test_impossible_settings_are_refused(classes, ignore):
    with pytest.raises(ValueError, match="class"):
        ConfusionMatrix(classes, ignore)


@pytest.mark.parametrize("spread", [1, 1 << 10, 1 << 20])
def test_accelerator_histogram_equals_bincount(spread, monkeypatch):
    monkeypatch.setattr(metrics, "_SPREAD_BINS", spread)
    pair = torch.randint(0, 27, (3, 501), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.bincount(row, minlength=27) for row in pair])
    counts = metrics._histogram(pair, 27)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
def test_update_on_cuda_does_not_wait_for_the_host(deterministic):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    prediction, labels = random_maps(seed=5)
    confusion = ConfusionMatrix(5, device="cuda")
    on_device = prediction.cuda(), labels.cuda()
    confusion.update(*on_device)
    confusion.reset()
    torch.use_deterministic_algorithms(deterministic)
    torch.cuda.set_sync_debug_mode("error")
    try:
        confusion.update(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert (confusion.matrix.cpu().numpy() == naive(prediction, labels, 5)).all()
