"""Confidence intervals over independent seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, in the units of the values."""

    mean: float
    low: float
    high: float


class Error(NamedTuple):
    """A standard error, and the degrees of freedom that it has been estimated with."""

    standard_error: float
    degrees_of_freedom: float


def error_of_sum(spreads: npt.ArrayLike, numbers: npt.ArrayLike) -> Error:
    """Return the standard error of a sum of independent means: of ``numbers`` [G] ≥ 2 values with ``spreads`` [G].

    Its square is Σ s_g²/n_g; the degrees of freedom are those of Welch (1947, Biometrika 34, 28) and Satterthwaite,
    between the smallest n_g − 1 and Σ (n_g − 1). A group without spread adds neither error nor uncertainty about it;
    if none has any, the degrees of freedom are the smallest n_g − 1. One group gives s/√n and n − 1.
    """
    s, n = np.broadcast_arrays(np.asarray(spreads, dtype=float).ravel(), np.asarray(numbers).ravel())
    errors = s / np.sqrt(n)
    error = math.hypot(*errors)
    fewest = float(n.min() - 1)
    if not error > 0:
        return Error(error, fewest)
    # Taken out of the sum, the smallest n − 1 makes one group exact: 1/(1/49) is not 49.
    return Error(error, fewest / float(((errors / error) ** 4 * (fewest / (n - 1))).sum()))


def sum_interval(groups: Sequence[npt.ArrayLike], confidence: float = 0.95) -> Interval:
    """Return the sum of the means of independent groups of values, and its two-sided interval.

    Groups may differ in number and spread: Welch's interval, by ``error_of_sum``. With one group it is exactly
    ``student_t_interval``, with two, of which one is negated, that of Welch's t test. The bounds are NaN if a group
    has fewer than two values or one that is not finite; if one has none, the sum is NaN too, as it is of no groups.
    """
    values = [np.asarray(group, dtype=float) for group in groups]
    if not values or min(x.size for x in values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(sum(x.mean() for x in values))
    if min(x.size for x in values) == 1 or not np.isfinite(mean):
        return Interval(mean, np.nan, np.nan)
    error = error_of_sum([x.std(ddof=1) for x in values], [x.size for x in values])
    half = _half_width(error, confidence)
    return Interval(mean, mean - half, mean + half)


def student_t_interval(values: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of n independent values and its two-sided interval, mean ± t_{n−1} · s/√n.

    Not the bootstrap: with the few seeds that a study can afford, resampling underestimates the spread. A 95
    % percentile bootstrap over 5 seeds covers 84 %, over 3 seeds 74 %; Student's t is exact for normal values
    at any n ≥ 2. The bounds are NaN below two values, or if one is not finite; without any value the mean is
    NaN too.
    """
    return sum_interval([values], confidence)


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
    half = _half_width(Error(error, n - 1), confidence)
    return Interval(mean, mean - half, mean + half)


def _half_width(error: Error, confidence: float) -> float:
    return float(stdtrit(error.degrees_of_freedom, 0.5 + confidence / 2)) * error.standard_error
