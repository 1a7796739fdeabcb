"""How many seeds decide how small a difference: the power of one-sided t tests over seeds, in closed form.

A test is about a sum of means of independent groups of seeds (``dmdpipe.evidence.intervals``), one group in the
simplest case. With normal values, a sum that lies δ beyond the threshold in the direction tested, and the standard
error se on ν degrees of freedom, the t statistic follows the noncentral t distribution on ν degrees of freedom with
noncentrality δ/se (see e.g. J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, ch. 2). The test
at level α decides where the statistic exceeds the (1 − α) quantile of Student's t. For one group of n seeds with
standard deviation σ, se = σ/√n, ν = n − 1, and this is exact; for several, ν is Welch's and it is an
approximation: 0.80 may be 0.775 in truth where a group has 5 seeds.

A probability here is only as good as σ, which few seeds know roughly: over 5, the 95 % interval of a standard
deviation reaches from 0.6 to 2.9 times the estimate.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtr, nctdtrinc, stdtrit

from dmdpipe.evidence.intervals import error_of_sum

PROBABILITY = 0.8
MOST_SEEDS = 10_000


def power(difference: float, n: npt.ArrayLike, spread: npt.ArrayLike, level: float) -> float:
    """Return the probability that a one-sided t test at ``level`` decides.

    ``difference`` δ is how far beyond the threshold the truth lies; at 0 the probability is ``level``, below 0 it is
    less. ``n`` ≥ 2 is the number of seeds and ``spread`` σ > 0 their standard deviation, or one of each per group [G].
    """
    error, df = error_of_sum(spread, n)
    return float(1 - nctdtr(df, difference / error, stdtrit(df, 1 - level)))


def detectable_difference(
    n: npt.ArrayLike, spread: npt.ArrayLike, level: float, probability: float = PROBABILITY
) -> float:
    """Return the smallest difference δ from the threshold that ``n`` ≥ 2 seeds decide with ``probability``.

    ``spread`` is the standard deviation σ ≥ 0 over seeds; δ is in its units. Both may be one per group [G].
    ``probability`` must be above ``level``.
    """
    error, df = error_of_sum(spread, n)
    return float(error * nctdtrinc(df, 1 - probability, stdtrit(df, 1 - level)))


def seeds_needed(
    difference: float,
    spread: npt.ArrayLike,
    level: float,
    probability: float = PROBABILITY,
    proportions: npt.ArrayLike = 1,
) -> int | None:
    """Return the least number of seeds, 2 or more, that decide a ``difference`` δ ≥ 0 with ``probability``.

    ``spread`` is the standard deviation σ ≥ 0 over seeds, in the units of δ, or one per group [G]. With groups,
    ``proportions`` [G] are whole numbers that their numbers of seeds are proportional to, e.g. those of a run. The
    number returned is the smallest group's; the others are scaled alike and rounded up. None if it takes more than
    ``MOST_SEEDS``, as it always does at δ = 0.
    """
    numbers = range(2, MOST_SEEDS + 1)
    if not np.any(spread):
        return numbers[0] if difference > 0 else None
    like = np.asarray(proportions)
    i = bisect_left(numbers, probability, key=lambda n: power(difference, -(-n * like // like.min()), spread, level))
    return numbers[i] if i < len(numbers) else None
