"""The optimal-transport map from the noise to the teacher's distribution, as far as samples tell it.

Its graph is the coupling of N(0, I) and the distribution with the least E‖z − x‖². Between Gaussians it is known; else
it is estimated by assignments. An assignment of N noises to N samples is a rough estimate in high dimension, so every
number made from it stands beside the same number for a Gaussian of the same moments, where the truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dmdpipe.copying.baselines import AffineMap
from dmdpipe.copying.distances import Array, as_points, squared_distances
from dmdpipe.copying.pairing_metrics import random_cost


def gaussian_transport(samples: npt.ArrayLike) -> AffineMap:
    """Return z ↦ m + Σ^{1/2}z, with mean m and covariance Σ of samples [M, d].

    The optimal-transport map if the samples are Gaussian, and the best of all affine maps onto the moments else
    (Olkin & Pukelsheim, 1982).
    """
    points = as_points(samples)
    mean = points.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh((points - mean).T @ (points - mean) / len(points))
    return AffineMap((axes * np.sqrt(eigenvalues.clip(min=0))) @ axes.T, mean)


def assigned_maps(z: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Return the images [R, N, d] of noises z [N, d]: each set of targets [R, N, d] in the optimal order, y_π(i).

    Exact linear assignment with the cost ‖z_i − y_j‖², set by set: O(N²) memory, about O(N³) time.
    """
    from scipy.optimize import linear_sum_assignment

    noise = as_points(z)
    assigned = []
    for points in np.asarray(targets, dtype=np.float64):
        costs = squared_distances(noise, points)
        # As in optimal_cost: it changes no order, and leaves less to search.
        costs -= costs.min(axis=1, keepdims=True)
        costs -= costs.min(axis=0)
        assigned.append(points[linear_sum_assignment(costs)[1]])
    return np.stack(assigned)


@dataclass(frozen=True)
class TransportEstimate:
    """Independent estimates of the optimal-transport map M at the same noises, and how well such estimates read.

    Attributes:
        assigned: as ``assigned_maps`` returns them [R, N, d], R ≥ 2.
        floor: what ``raw_transport_error`` reads for M itself.
        null: what it reads for a map that is independent of M.
    """

    assigned: Array
    floor: float
    null: float

    def rho(self, samples: npt.ArrayLike) -> float:
        """Return the estimate of ρ(S, M) from S(z) [N, d]: 0 for the floor, 1 for the null, linear between them.

        Where estimates are the map, shrunk, and scatter about it, the raw error is linear in the correlation of S
        and M, as ρ is. Estimates of ρ can come out below 0.
        """
        return (raw_transport_error(samples, self.assigned) - self.floor) / (self.null - self.floor)


def estimate_transport(
    z: npt.ArrayLike, other: npt.ArrayLike, targets: npt.ArrayLike, rng: np.random.Generator
) -> TransportEstimate:
    """Return the estimate at noises z [N, d], from independent sets of the distribution's samples [R, N, d].

    Its floor and null are those of a Gaussian with the targets' mean and covariance, whose M is known, at the same
    N, R and noise; the independent map is M of ``other`` noises [N, d].
    """
    sets = np.asarray(targets, dtype=np.float64)
    gaussian = gaussian_transport(sets.reshape(-1, sets.shape[2]))
    drawn = gaussian(rng.standard_normal((sets.shape[0] * sets.shape[1], sets.shape[2])))
    of_gaussian = assigned_maps(z, drawn.reshape(sets.shape))
    floor, null = (raw_transport_error(gaussian(noise), of_gaussian) for noise in (z, other))
    return TransportEstimate(assigned_maps(z, sets), floor, null)


def raw_transport_error(samples: npt.ArrayLike, assigned: npt.ArrayLike) -> float:
    """Return the mean over r ≠ q and i of ⟨s_i − M_r(z_i), s_i − M_q(z_i)⟩, over the mean of C_rand(S, M_r).

    In the product of two independent estimates their scatter cancels, which in ‖s_i − M_r(z_i)‖² would be added to
    every map's distance. What is left is their bias: an assignment of few points in many dimensions is drawn towards
    the mean, so that M itself reads above 0 and an independent map below 1.

    Args:
        samples: S(z) [N, d].
        assigned: M_1(z) … M_R(z) [R, N, d], R ≥ 2.
    """
    s = as_points(samples)
    maps = np.asarray(assigned, dtype=np.float64)
    products = [np.einsum("nd,nd->n", s - a, s - b).mean() for a, b in combinations(maps, 2)]
    random = float(np.mean([random_cost(s, points) for points in maps]))
    return float(np.mean(products)) / random if random > 0 else np.nan
