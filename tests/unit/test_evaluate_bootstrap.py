"""Confidence intervals of the mean IoU over images."""

from __future__ import annotations

import numpy as np
import pytest

from cirkd_ray.evaluate.bootstrap import bootstrap_miou, per_image_miou


def table(images: int, classes: int = 4, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """Correct, labelled and predicted pixels of random images whose quality varies."""
    rng = np.random.default_rng(seed)
    labelled = rng.integers(50, 500, (images, classes))
    quality = rng.uniform(0.5 - spread, 0.5 + spread, (images, 1))
    correct = (labelled * quality).astype(np.int64)
    predicted = correct + rng.integers(0, 200, (images, classes))
    return np.stack([correct, labelled, predicted], axis=1)


def naive_miou(areas: np.ndarray) -> float:
    ious = []
    for correct, labelled, predicted in areas.T.tolist():
        union = labelled + predicted - correct
        if union:
            ious.append(correct / union)
    return float(np.mean(ious)) if ious else float("nan")


def test_per_image_scores_leave_out_absent_classes():
    areas = table(5)
    areas[2, :, 1] = 0
    areas[3] = 0
    expected = [naive_miou(image) for image in areas]
    np.testing.assert_allclose(per_image_miou(areas), expected)
    assert np.isnan(expected[3])


def test_interval_equals_resampling_written_out():
    areas, resamples = table(12), 400
    rng = np.random.default_rng(5)
    scores = []
    for start in range(0, resamples, 256):
        for counts in rng.multinomial(12, np.full(12, 1 / 12), size=min(256, resamples - start)):
            drawn = np.repeat(np.arange(12), counts)
            scores.append(naive_miou(areas[drawn].sum(0)))
    found = bootstrap_miou(areas, resamples=resamples, confidence=0.9, seed=5)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [0.05, 0.95])))
    assert (found.confidence, found.resamples) == (0.9, resamples)


def test_interval_is_over_the_classes_of_its_point():
    areas = table(6)
    areas[:5, :, 2:] = 0  # two classes occur in one image only
    whole, rng, scores = areas.sum(0), np.random.default_rng(3), []
    for counts in rng.multinomial(6, np.full(6, 1 / 6), size=200):
        drawn = areas[np.repeat(np.arange(6), counts)].sum(0)
        drawn[:, drawn.sum(0) == 0] = whole[:, drawn.sum(0) == 0]
        scores.append(naive_miou(drawn))
    found = bootstrap_miou(areas, resamples=200, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])))


def test_interval_covers_the_true_score_about_as_often_as_it_says():
    world = table(4000, seed=1)
    truth = naive_miou(world.sum(0))
    rng, hits = np.random.default_rng(2), 0
    for trial in range(100):
        interval = bootstrap_miou(world[rng.choice(4000, 40)], resamples=200, seed=trial)
        hits += interval.low <= truth <= interval.high
    assert 86 <= hits <= 100


def test_more_images_make_it_narrower_and_the_seed_decides():
    few, many = bootstrap_miou(table(20)), bootstrap_miou(table(500))
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert bootstrap_miou(table(20)) == few
    assert bootstrap_miou(table(20), seed=1) != few


def test_without_labels_there_is_no_interval_and_a_few_are_enough():
    areas = table(6)
    areas[1:] = 0
    assert bootstrap_miou(areas * 0) is None
    assert bootstrap_miou(areas).low == pytest.approx(naive_miou(areas[0]))


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"confidence": 1.0}])
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_miou(table(3), **settings)
    with pytest.raises(ValueError, match="0 images"):
        bootstrap_miou(table(3)[:0])
