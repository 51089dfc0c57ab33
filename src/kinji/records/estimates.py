"""Numbers with intervals: what a metric returns and a verdict is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval [`low`, `high`]; `modelled` if no measurement of it was made."""

    value: float
    low: float
    high: float
    modelled: bool = False


def exact(value: float) -> Estimate:
    """Return an estimate without uncertainty: a count, a ratio of counts, a worst case over everything tried."""
    return Estimate(float(value), float(value), float(value))


def median_estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median of `values` with its bootstrap interval (percentile method, 2,000 resamples).

    Below six values the interval is at most their range, which holds the median less often than 95 times in 100.
    """
    sample = np.asarray(values, dtype=float)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"a median needs finite values, got {sample.tolist()}")
    resamples = np.random.default_rng(seed).choice(sample, size=(RESAMPLES, sample.size))
    low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    return Estimate(float(np.median(sample)), float(low), float(high))


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Estimate:
    """Return p of cost ~ size^p by least squares in log-log, with its t interval; three distinct sizes at least.

    Repetitions of one size are not independent sizes: their median counts once.
    """
    n, slots = np.unique(np.asarray(sizes, float), return_inverse=True)
    every = np.asarray(costs, float)
    cost = np.array([np.median(every[slots == slot]) for slot in range(n.size)])
    if n.size < 3 or not (np.isfinite(cost).all() and (n > 0).all() and (cost > 0).all()):
        raise ValueError(f"a growth exponent needs three sizes and positive costs, got {list(sizes)} and {list(costs)}")
    x, y = np.log(n) - np.log(n).mean(), np.log(cost) - np.log(cost).mean()
    slope = float(x @ y / (x @ x))
    deviation = float(np.sqrt(np.square(y - slope * x).sum() / (n.size - 2) / (x @ x)))
    half = float(stats.t.ppf(0.975, n.size - 2)) * deviation
    return Estimate(slope, slope - half, slope + half)
