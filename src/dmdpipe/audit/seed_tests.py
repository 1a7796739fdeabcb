"""Whether the seeds of a study that was trained twice could have come from one distribution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import comb, stdtr, stdtrit

from dmdpipe.audit.formats.difference import DECLARED
from dmdpipe.audit.formats.numbers import largest_difference
from dmdpipe.evidence.intervals import error_of_sum
from dmdpipe.evidence.results import AGGREGATE

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.01

Array = npt.NDArray[np.float64]


class SeedTest(NamedTuple):
    """Whether two runs of a study are statistically compatible, and why or why not in one sentence."""

    compatible: bool
    reason: str


def compare_seeds(a: pd.DataFrame, b: pd.DataFrame, level: float = LEVEL) -> SeedTest:
    """Return whether two results tables of one study (see ``dmdpipe.evidence.results``) are compatible.

    For each point and metric, the values of the seeds at the read-out step are compared by ``welch_p_value``. With m
    comparisons they are incompatible if any p is below ``level``/m (Bonferroni), so a rerun that follows the same
    distribution is called different with probability at most ``level``. Values that are equal within the declared
    tolerance seed by seed are counted and never reject. Where the number of values that are not finite differs, or
    fewer than two are finite on a side, nothing can be tested, and the runs are called different.

    A seed sets the random numbers of both runs, so their values are correlated if anything, and means then differ less
    than the test, which takes them to be independent, allows for: it errs towards compatible.
    """
    try:
        values = [_readouts(table) for table in (a, b)]
    except (KeyError, TypeError, ValueError) as error:
        return SeedTest(False, f"cannot be tested: no results table of a study ({error})")
    if odd := sorted(values[0].keys() ^ values[1].keys()):
        return SeedTest(False, f"{_name(odd[0])}: only in {'A' if odd[0] in values[0] else 'B'}")
    if not values[0]:
        return SeedTest(False, "cannot be tested: it holds no seed at the read-out step")
    p_values = {}
    fewest = math.inf
    for key, x in values[0].items():
        y = values[1][key]
        if _equal_within_tolerance(x, y):
            p_values[key] = 1.0
            continue
        finite = [side[np.isfinite(side)] for side in (x, y)]
        if len(x) - len(finite[0]) != len(y) - len(finite[1]):
            numbers = [f"{len(side) - len(kept)} of {len(side)}" for side, kept in zip((x, y), finite, strict=True)]
            return SeedTest(False, f"{_name(key)}: {numbers[0]} seeds in A are not finite, {numbers[1]} in B")
        least = min(map(len, finite))
        if least < 2:
            return SeedTest(False, f"cannot be tested: {_name(key)}: {least} seeds on a side, and a test needs 2")
        fewest = min(fewest, least)
        p_values[key] = welch_p_value(*finite)
    threshold = level / len(p_values)
    key = min(p_values, key=lambda key: p_values[key])
    if not p_values[key] >= threshold:
        x, y = values[0][key], values[1][key]
        return SeedTest(
            False,
            f"{_name(key)}: mean {np.nanmean(x):.4g} over {len(x)} seeds → {np.nanmean(y):.4g} over {len(y)}, "
            f"Welch's p = {p_values[key]:.2g}, below {level:g}/{len(p_values)}",
        )
    if fewest == math.inf:
        return SeedTest(True, f"all {len(p_values)} sets of seeds at the read-out step are equal within tolerance")
    return SeedTest(
        True,
        f"none of {len(p_values)} comparisons of seeds rejects (Welch's t, overall level {level:g}); smallest p = "
        f"{p_values[key]:.2g}, {_name(key)}; {fewest} seeds a side show shifts of about "
        f"{_visible_shift(int(fewest), threshold):.2g} standard deviations or more",
    )


def welch_p_value(x: Array, y: Array) -> float:
    """Return the two-sided p value of equal means of two sets [n], [m] of at least two finite values each.

    By Welch's t test. Without any spread on both sides there is no t; then, by the exact permutation test, as likely as
    that all values of one kind fall on one side: 2/C(n + m, n). Metrics that count, such as one that is 0 or 1, come
    out so by chance.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        spreads = [values.std(ddof=1) if np.ptp(values) > 0 else 0.0 for values in (x, y)]
        error, degrees_of_freedom = error_of_sum(spreads, [len(x), len(y)])
        gap = abs(float(x.mean() - y.mean()))
    if error > 0:
        return float(2 * stdtr(degrees_of_freedom, -gap / error))
    return min(1.0, float(2 / comb(len(x) + len(y), len(x)))) if x[0] != y[0] else 1.0


def _readouts(table: pd.DataFrame) -> dict[tuple[str, str], Array]:
    """Return the values of the seeds at the read-out step by point and metric, in the order of the seeds."""
    rows = table[table["readout"].astype(bool) & (table["seed"] != AGGREGATE)].sort_values("seed", kind="stable")
    groups = rows.groupby(["point", "metric"], sort=True)["value"]
    return {(str(point), str(metric)): values.to_numpy(dtype=float) for (point, metric), values in groups}


def _equal_within_tolerance(x: Array, y: Array) -> bool:
    if len(x) != len(y):
        return False
    found = largest_difference(x, y, DECLARED)
    return found is None or found.excess <= 1


def _visible_shift(seeds: int, level: float) -> float:
    """Return the shift, in standard deviations, at which the test is as likely as not to reject."""
    return float(stdtrit(2 * (seeds - 1), 1 - level / 2)) * math.sqrt(2 / seeds)


def _name(key: tuple[str, str]) -> str:
    return f"{key[1]} at {key[0]}"
