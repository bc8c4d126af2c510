"""How sure a mean IoU is: confidence intervals by drawing the images of a set anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CHUNK = 256


class ConfidenceInterval(NamedTuple):
    """A confidence interval of a score in 0..1."""

    low: float
    high: float
    confidence: float
    resamples: int


def per_image_miou(per_image: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean IoU of each image over the classes in its labels or prediction; NaN for an image without labels.

    Args:
        per_image: images x 3 x K, see `EvaluationResult`.

    Returns:
        A number an image, 0..1.
    """
    return _miou(per_image.astype(np.float64))


def bootstrap_miou(
    per_image: NDArray[np.int64], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> ConfidenceInterval | None:
    """Percentile bootstrap over images of the mean IoU (Efron & Tibshirani, 1993, chapter 13).

    Each resample draws as many images as there are, with replacement, sums their counts and takes the mean
    IoU over the classes that occur in the whole set, as the score itself does: a class that a resample lacks
    keeps its IoU of the whole set. The interval says how much the score depends on which images the
    set happens to hold; it does not cover the spread over training seeds.

    Args:
        per_image: images x 3 x K, see `EvaluationResult`.
        resamples: how many sets are drawn.
        confidence: share of the resamples inside.
        seed: of the draws.

    Returns:
        The interval; None where no resample has a score, because no pixel is labelled.

    Raises:
        ValueError: no images, or a setting out of bounds.
    """
    images = len(per_image)
    if images < 1 or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"{images} images, {resamples} resamples, confidence {confidence}")
    rng = np.random.default_rng(seed)
    # Sums of counts stay below 2^53, so float64 holds them exactly and a matrix product does the summing.
    flat = per_image.reshape(images, -1).astype(np.float64)
    whole = _iou(per_image.sum(0).astype(np.float64))
    scores = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)
        scores.append(_miou((weights @ flat).reshape(count, *per_image.shape[1:]), whole))
    tail = (1 - confidence) / 2
    drawn = np.concatenate(scores)
    if np.isnan(drawn).all():
        return None
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return ConfidenceInterval(float(low), float(high), confidence, resamples)


def _iou(areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """... x 3 x K counts (correct, labelled, predicted) -> ... x K IoUs, NaN where a class does not occur."""
    correct, union = areas[..., 0, :], areas[..., 1, :] + areas[..., 2, :] - areas[..., 0, :]
    iou: NDArray[np.float64] = np.divide(correct, union, out=np.full_like(correct, np.nan), where=union > 0)
    return iou


def _miou(areas: NDArray[np.float64], absent: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """... x 3 x K counts -> ... mean IoUs over the classes that occur, or that have an IoU in `absent`."""
    iou = _iou(areas)
    if absent is not None:
        iou = np.where(np.isnan(iou), absent, iou)
    classes = (~np.isnan(iou)).sum(-1)
    total = np.nansum(iou, axis=-1)
    mean: NDArray[np.float64] = np.divide(
        total, classes, out=np.full(classes.shape, np.nan), where=classes > 0
    )
    return mean
