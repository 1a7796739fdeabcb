"""Confidence intervals over independent seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


def student_t_interval(values: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of n independent values and its two-sided interval, mean ± t_{n−1} · s/√n.

    Not the bootstrap: with the few seeds that a study can afford, resampling underestimates the spread. A 95
    % percentile bootstrap over 5 seeds covers 84 %, over 3 seeds 74 %; Student's t is exact for normal values
    at any n ≥ 2. The bounds are NaN below two values, or if one is not finite; without any value the mean is
    NaN too.
    """
    x = np.asarray(values, dtype=float)
    n = x.size
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(x.mean())
    if n == 1 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan)
    half = _half_width(float(x.std(ddof=1)) / np.sqrt(n), n, confidence)
    return Interval(mean, mean - half, mean + half)


def seed_pair_interval(pairs: dict[tuple[int, int], float], confidence: float = 0.95) -> Interval:
    """Return the mean over all pairs of n seeds and its interval, from leaving out one seed at a time.

    The n(n−1)/2 pairs share seeds, so they are not independent, and an interval over them as if they were
    would be too narrow. The jackknife over seeds, with n − 1 degrees of freedom, is right where a pair's
    value is the sum of its seeds' and errs on the wide side otherwise (Efron & Stein 1981). The bounds are
    NaN below three seeds.
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    n = len(seeds)
    mean = float(np.mean(list(pairs.values()))) if pairs else np.nan
    if n < 3:
        return Interval(mean, np.nan, np.nan)
    without = np.array([np.mean([v for pair, v in pairs.items() if seed not in pair]) for seed in seeds])
    error = float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))
    half = _half_width(error, n, confidence)
    return Interval(mean, mean - half, mean + half)


def _half_width(standard_error: float, n: int, confidence: float) -> float:
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * standard_error
