"""The statistics that criteria are about: each turns a table [seeds, points] into one number per seed.

Means and slopes are sums over points, each with a weight of its own. So they can be taken in parts, of some points at
a time: what is told about all points is the weights', and the parts add up to the whole.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]


def mean_over_points(values: Array, points: int) -> Array:
    """Return what the columns of ``values`` [S, Q] add to the mean over ``points`` ≥ Q points, shape [S].

    With all Q = ``points`` columns this is the mean of every row.
    """
    return values.sum(axis=1) / points


def slope_per_doubling(values: Array, x: Array, part: npt.NDArray[np.bool_] | None = None) -> Array:
    """Return the least-squares slope of every row of ``values`` [S, P] against log2 ``x`` [P], shape [S].

    With ``part`` [P] true at Q points, ``values`` [S, Q] has these points only, and what they add to the slope over all
    P is returned. x must be positive. NaN if all x are equal.
    """
    centred = np.log2(x) - np.log2(x).mean()
    spread = float(centred @ centred)
    of_part = centred if part is None else centred[part]
    return values @ of_part / spread if spread > 0 else np.full(len(values), np.nan)


def rank_correlation(a: Array, b: Array) -> Array:
    """Return Spearman's correlation between the rows of ``a`` and ``b`` [S, P], shape [S], in −1…1.

    Ties share their mean rank. NaN for a row that is constant in a or b.
    """
    ranks_a, ranks_b = (_centred_ranks(values) for values in (a, b))
    norms = np.linalg.norm(ranks_a, axis=1) * np.linalg.norm(ranks_b, axis=1)
    products = (ranks_a * ranks_b).sum(axis=1)
    return np.divide(products, norms, out=np.full(len(norms), np.nan), where=norms > 0)


def _centred_ranks(values: Array) -> Array:
    ranks = pd.DataFrame(values).rank(axis=1).to_numpy()
    return ranks - ranks.mean(axis=1, keepdims=True)
