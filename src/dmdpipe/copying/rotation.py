"""By which rotation of the noise a map of a Gaussian differs from the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.baselines import PAIRS_PER_DIMENSION, fit_affine
from dmdpipe.copying.distances import as_points

if TYPE_CHECKING:
    import numpy.typing as npt

SMALLEST_SHARE = 1e-9  # of the largest variance: directions below have none, whatever rounding says


def rotation(student: npt.ArrayLike, z: npt.ArrayLike, covariance: npt.ArrayLike) -> float:
    """Return ‖Q − I‖²_F/(2d), Q the polar factor of Σ^(−1/2)·A: 0 the teacher's own pairing, 1 on average at random.

    A [d, d] is the best linear map of the noise, the student itself if that is linear. Where AAᵀ = Σ, A = Σ^(1/2)·Q;
    the probability flow ends in Q = I. The largest value is 2, for Q = −I. If Σ has rank r < d, all is read on its
    range: Q is an r×d matrix of orthonormal rows, I the projection on the range, and r stands for d.

    NaN if there are fewer than 2d pairs, or A lacks a direction in which Σ varies.

    Args:
        student: S(z) [N, d].
        z: standard normal noise [N, d].
        covariance: Σ [d, d], symmetric, positive semi-definite, not zero.
    """
    samples, sigma = as_points(student), as_points(covariance)
    n, d = samples.shape
    if n < PAIRS_PER_DIMENSION * d:
        return np.nan
    variances, axes = np.linalg.eigh(sigma)
    ranged = variances > SMALLEST_SHARE * variances.max()
    onto = axes[:, ranged].T
    left, stretches, right = np.linalg.svd(
        onto @ fit_affine(z, samples).weight.T / np.sqrt(variances[ranged])[:, None], full_matrices=False
    )
    if stretches.min() <= SMALLEST_SHARE * max(1.0, stretches.max()):
        return np.nan
    return float(np.square(left @ right - onto).sum() / (2 * ranged.sum()))
