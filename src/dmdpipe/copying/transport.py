"""The optimal-transport map from the noise to the teacher's distribution, as far as samples tell it.

Its graph is the coupling of N(0, I) and the distribution with the least E‖z − x‖². Between Gaussians it is known; else
it is estimated by assignments. An assignment of N noises to N samples is a rough estimate in high dimension, so it is
measured on a Gaussian of the same moments, where the truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmdpipe.copying.baselines import AffineMap
from dmdpipe.copying.distances import Array, as_points, squared_distances
from dmdpipe.copying.pairing_metrics import random_cost
from dmdpipe.kernels.assignment import optimal_assignment


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
    noise = as_points(z)
    assigned = []
    for points in np.asarray(targets, dtype=np.float64):
        assigned.append(points[optimal_assignment(squared_distances(noise, points))])
    return np.stack(assigned)


@dataclass(frozen=True)
class TransportEstimate:
    """Estimates of the optimal-transport map M at noises z.

    Attributes:
        assigned: as ``assigned_maps`` returns them [R, N, d].
        slope: how much of M they are in the mean, about 0…1: an assignment of few points in many dimensions is drawn
            towards the mean.
    """

    assigned: Array
    slope: float

    def rho(self, samples: npt.ArrayLike) -> float:
        """Return the estimate of ρ(S, M) from S(z) [N, d]: 1 − 2·cov(S, M)/C_rand.

        That is C_pair/C_rand, but for the sampling error of means, written so that M enters by its covariance with S
        alone: there the scatter of the assignments about slope·M cancels. Estimates can come out below 0.
        """
        s = as_points(samples)
        mean = self.assigned.mean(axis=0)
        shared = np.vdot(s - s.mean(axis=0), mean - mean.mean(axis=0)) / len(s) / self.slope
        random = float(np.mean([random_cost(s, points) for points in self.assigned]))
        return float(1 - 2 * shared / random) if random > 0 else np.nan


def estimate_transport(z: npt.ArrayLike, targets: npt.ArrayLike, rng: np.random.Generator) -> TransportEstimate:
    """Return the estimate at noises z [N, d], from independent sets of the distribution's samples [R, N, d].

    Its slope is that of a Gaussian with the targets' mean and covariance, whose M is known, at the same N, R and z.
    """
    sets = np.asarray(targets, dtype=np.float64)
    gaussian = gaussian_transport(sets.reshape(-1, sets.shape[2]))
    drawn = gaussian(rng.standard_normal((sets.shape[0] * sets.shape[1], sets.shape[2])))
    found = assigned_maps(z, drawn.reshape(sets.shape)).mean(axis=0)
    true = gaussian(z)
    true = true - true.mean(axis=0)
    return TransportEstimate(assigned_maps(z, sets), float(np.vdot(true, found) / np.vdot(true, true)))
