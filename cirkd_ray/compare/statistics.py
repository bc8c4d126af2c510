"""What a few seeds allow to say: intervals, paired tests, and their correction for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN bounds where one value gives none."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """A paired comparison over common seeds.

    Attributes:
        difference: mean of (method - baseline), with its 95 % interval.
        p: two-sided p-value of the paired t-test; NaN with fewer than two seeds.
        p_holm: the same after Holm's correction over all methods compared.
        seeds: how many pairs.
    """

    difference: Interval
    p: float
    p_holm: float
    seeds: int


LEAST_GAP = 0.02
"""A teacher's lead (mIoU, of 1) below which no share of it is told: runs of other seeds differ by as much."""


def share_of_gap(baseline: float, method: float, teacher: float) -> float:
    """(method - baseline) / (teacher - baseline) of mIoUs; NaN where the divisor is less than `LEAST_GAP`."""
    gap = teacher - baseline
    return (method - baseline) / gap if gap >= LEAST_GAP else math.nan


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student-t interval of independent runs."""
    from scipy import stats

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + confidence / 2, data.size - 1) * data.std(ddof=1) / math.sqrt(data.size))
    return Interval(mean, mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that the mean difference is 0; NaN with fewer than two pairs."""
    from scipy import stats

    data = np.asarray(differences, dtype=np.float64)
    if data.size < 2:
        return math.nan
    if float(data.std(ddof=1)) == 0.0:  # the t statistic is 0/0 or infinite
        return 1.0 if float(data.mean()) == 0.0 else 0.0
    return float(stats.ttest_1samp(data, 0.0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Holm 1979): adjusted p-values; NaN stays NaN and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, math.nan)
    highest = 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[name] = highest
    return adjusted


def compare_to_baseline(
    methods: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float]
) -> dict[str, Paired]:
    """Each method against the baseline over the seeds that both have.

    Args:
        methods: name -> seed -> figure.
        baseline: seed -> figure.
    """
    differences = {
        name: [value - baseline[seed] for seed, value in sorted(values.items()) if seed in baseline]
        for name, values in methods.items()
    }
    raw = {name: paired_p(values) for name, values in differences.items()}
    corrected = holm(raw)
    return {
        name: Paired(t_interval(values), raw[name], corrected[name], len(values))
        for name, values in differences.items()
    }
