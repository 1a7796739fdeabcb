"""What linear structure alone explains: the best affine map, mean Jacobians, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.copying.distances import Array, as_points

if TYPE_CHECKING:
    import numpy.typing as npt

# Near M = d least squares fits its own pairs and little else: any student would look good beside it.
PAIRS_PER_DIMENSION = 2


@dataclass(frozen=True)
class AffineMap:
    """x = mean + z·weight, on rows: ``weight`` [d, d'], ``mean`` [d']."""

    weight: Array
    mean: Array

    def __call__(self, z: npt.ArrayLike) -> Array:
        """Return the images [N, d'] of the noise z [N, d]."""
        return self.mean + as_points(z) @ self.weight


def fit_affine(z: npt.ArrayLike, samples: npt.ArrayLike) -> AffineMap:
    """Return the affine map of least squared error from noise to samples; judge it on other pairs.

    Args:
        z: standard normal noise [M, d], M at least 2d (``PAIRS_PER_DIMENSION``).
        samples: its images [M, d'] under the map to be approximated.

    Raises:
        ValueError: if there are fewer pairs.
    """
    noise, images = as_points(z), as_points(samples)
    m, d = noise.shape
    if m < PAIRS_PER_DIMENSION * d:
        raise ValueError(f"{m} pairs are too few to fit an affine map of {d} coordinates")
    noise_mean, image_mean = noise.mean(axis=0), images.mean(axis=0)
    centred = noise - noise_mean
    # The normal equations are safe here: for Gaussian noise with M ≥ 2d their condition number is about 34 at
    # most, and they cost a small part of an orthogonal factorisation.
    weight = np.linalg.solve(centred.T @ centred, centred.T @ (images - image_mean))
    return AffineMap(weight, image_mean - noise_mean @ weight)


def match_variance(affine: AffineMap, z: npt.ArrayLike, samples: npt.ArrayLike) -> AffineMap:
    """Return the map, rescaled about its mean so that its images of z vary as much as the samples.

    Least squares shrinks what it cannot explain; the rescaled map has the spread of a sampler, as a student
    has. A map without variance stays as it is.

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


def class_means(held_out: Array, classes: npt.NDArray, classes_held_out: npt.NDArray) -> tuple[Array, Array]:
    """Return the mean held-out sample of the class of each pair [N, d] and of each held-out sample [M, d].

    A class without held-out samples has the mean of all.
    """
    means = {one: held_out[classes_held_out == one].mean(axis=0) for one in np.unique(classes_held_out)}
    mean = held_out.mean(axis=0)
    return np.stack([means.get(one, mean) for one in classes]), np.stack([means[one] for one in classes_held_out])


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


def jacobian_alignment(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return the cosine (Frobenius) between two mean Jacobians: 1 parallel, 0 unrelated, −1 opposite.

    The estimation error draws unequal maps towards 0 unless N is well above d. NaN if one of the two is 0.

    Args:
        student: [d', d], as ``mean_jacobian`` estimates it.
        teacher: [d', d], estimated from the same noise.
    """
    a, b = as_points(student), as_points(teacher)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / norms) if norms > 0 else np.nan


def scale_ratio(student: npt.ArrayLike, teacher: npt.ArrayLike) -> float:
    """Return the student's spread over the teacher's, spread = √(mean coordinate variance).

    NaN if the teacher's samples [N, d] do not vary.
    """
    reference = total_variance(teacher)
    return float(np.sqrt(total_variance(student) / reference)) if reference > 0 else np.nan
