"""Whether samples repeat what is known already: how they lie among training points, or among other samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.distances import as_points, centred
from dmdpipe.kernels.distances import two_nearest

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmdpipe.copying.distances import Array

MEMORIZED = 1 / 3  # a sample counts as memorized below this ratio, as in Yoon et al. (2023)


def nearest_ratios(samples: npt.ArrayLike, training: npt.ArrayLike) -> Array:
    """Return d₁/d₂ [N]: a sample's distance to the nearest training point over that to the second nearest.

    0: the sample is a training point. Near 1: it lies no nearer to one of them than to others. Among many points spread
    evenly in d dimensions the ratio is below r with probability r^d. Equal training points count once.

    Args:
        samples: points [N, d].
        training: points [m, d].

    Returns:
        Ratios in 0…1; NaN if fewer than two training points differ.
    """
    x, points = as_points(samples), np.unique(as_points(training), axis=0)
    if len(points) < 2:
        return np.full(len(x), np.nan)
    first, second = np.sqrt(two_nearest(*centred(x, points)).T)
    return first / second


def nearest_distances(samples: npt.ArrayLike, points: npt.ArrayLike) -> Array:
    """Return each sample's distance to the nearest of some points [N], for samples [N, d] and points [m, d]."""
    return np.sqrt(two_nearest(*centred(as_points(samples), as_points(points)))[:, 0])


def memorized_share(ratios: Array) -> float:
    """Return the share of samples whose ratio is below 1/3, 0…1; NaN if the ratios are."""
    return float(np.mean(ratios < MEMORIZED)) if np.isfinite(ratios).all() else float("nan")
