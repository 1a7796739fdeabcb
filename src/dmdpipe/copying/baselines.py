"""What linear structure alone explains: the best affine map, mean Jacobians, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.distances import Array, as_pairs, as_points

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class AffineMap:
    """x = mean + z·weight, on rows: ``weight`` [d, d'], ``mean`` [d']."""

    weight: Array
    mean: Array

    def __call__(self, z: npt.ArrayLike) -> Array:
        """Return the images [N, d'] of the noise z [N, d]."""
        return self.mean + as_points(z) @ self.weight


def fit_affine(z: npt.ArrayLike, samples: npt.ArrayLike) -> AffineMap:
    """Return the affine map of least squared error from noise to samples.

    Judge it on other pairs than these: with M ≤ d pairs it passes through all of them (the solution of least norm).

    Args:
        z: noise [M, d].
        samples: its images [M, d'] under the map to be approximated.
    """
    noise, images = as_points(z), as_points(samples)
    noise_mean, image_mean = noise.mean(axis=0), images.mean(axis=0)
    weight = np.linalg.lstsq(noise - noise_mean, images - image_mean, rcond=None)[0]
    return AffineMap(weight, image_mean - noise_mean @ weight)


def match_variance(affine: AffineMap, z: npt.ArrayLike, samples: npt.ArrayLike) -> AffineMap:
    """Return the map rescaled about its mean, so that the total variance of its images of z equals the samples'.

    Least squares shrinks what it cannot explain. The rescaled map has the spread of a sampler, as a student has.
    A map without variance stays as it is.

    Args:
        affine: the map as fitted.
        z: noise [M, d].
        samples: [M, d'].
    """
    images = affine(z)
    shrunk = np.sqrt(total_variance(images))
    factor = np.sqrt(total_variance(samples)) / shrunk if shrunk > 0 else 1.0
    centre = images.mean(axis=0)
    return AffineMap(factor * affine.weight, centre + factor * (affine.mean - centre))


def total_variance(samples: npt.ArrayLike) -> float:
    """Return the sum over coordinates of the variance (over N) of samples [N, d]."""
    return float(as_points(samples).var(axis=0).sum())


def mean_jacobian(z: npt.ArrayLike, samples: npt.ArrayLike) -> Array:
    """Return the estimate [d', d] of E[∂f/∂z] = E[f(z)·zᵀ] (Stein's lemma, z standard normal), both centred.

    Its error is about √(d·var(f)/N) in Frobenius norm, with var(f) the total variance of f.

    Args:
        z: noise [N, d].
        samples: f(z) [N, d'].
    """
    noise, images = as_points(z), as_points(samples)
    return (images - images.mean(axis=0)).T @ (noise - noise.mean(axis=0)) / len(noise)


def jacobian_alignment(z: npt.ArrayLike, student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return the cosine (Frobenius) between two maps' mean Jacobians: 1 parallel, 0 unrelated, −1 opposite.

    The estimation error draws unequal maps towards 0 unless N is well above d. NaN if one map does not vary.

    Args:
        z: noise [N, d].
        student: S(z) [N, d'].
        teacher: T(z) [N, d'].
    """
    s, t = as_pairs(student, teacher)
    a, b = mean_jacobian(z, s), mean_jacobian(z, t)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / norms) if norms > 0 else np.nan


def scale_ratio(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return the student's spread over the teacher's, spread = √(mean coordinate variance); NaN for a constant teacher."""
    reference = total_variance(teacher)
    return float(np.sqrt(total_variance(student) / reference)) if reference > 0 else np.nan
