"""How many seeds decide how small a difference: the power of one-sided t tests over seeds, in closed form.

With n normal values whose mean lies δ beyond the threshold, in the direction tested, and whose standard deviation is
σ, the t statistic follows the noncentral t distribution on n − 1 degrees of freedom with noncentrality (δ/σ)·√n (see
e.g. J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, ch. 2). The test at level α decides
where the statistic exceeds the (1 − α) quantile of Student's t.

A probability here is only as good as σ, which few seeds know roughly: over 5, the 95 % interval of a standard
deviation reaches from 0.6 to 2.9 times the estimate.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy.special import nctdtr, nctdtrinc, stdtrit

PROBABILITY = 0.8
MOST_SEEDS = 10_000


def power(effect: float, n: int, level: float) -> float:
    """Return the probability that a one-sided t test at ``level`` over ``n`` ≥ 2 seeds decides.

    ``effect`` = δ/σ is how far beyond the threshold the true mean lies, in standard deviations over seeds; at 0 the
    probability is ``level``, below 0 it is less.
    """
    return float(1 - nctdtr(n - 1, effect * np.sqrt(n), stdtrit(n - 1, 1 - level)))


def detectable_difference(n: int, spread: float, level: float, probability: float = PROBABILITY) -> float:
    """Return the smallest difference δ from the threshold that ``n`` ≥ 2 seeds decide with ``probability``.

    ``spread`` is the standard deviation σ over seeds; δ is in its units. ``probability`` must be above ``level``.
    """
    noncentrality = nctdtrinc(n - 1, 1 - probability, stdtrit(n - 1, 1 - level))
    return float(spread * noncentrality / np.sqrt(n))


def seeds_needed(difference: float, spread: float, level: float, probability: float = PROBABILITY) -> int | None:
    """Return the least number of seeds, 2 or more, that decide a ``difference`` δ ≥ 0 with ``probability``.

    ``spread`` is the standard deviation σ ≥ 0 over seeds, in the units of δ. None if it takes more than
    ``MOST_SEEDS``, as it always does at δ = 0.
    """
    numbers = range(2, MOST_SEEDS + 1)
    if spread == 0:
        return numbers[0] if difference > 0 else None
    i = bisect_left(numbers, probability, key=lambda n: power(difference / spread, n, level))
    return numbers[i] if i < len(numbers) else None
