"""What a family's ``draw`` returns: samples in raw units and, where it is known, the distribution itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of k Gaussians in d dimensions whose covariances share their eigenvectors.

    The covariance of mode j is ``basis · diag(variances[j]) · basisᵀ``.
    """

    weights: NDArray[np.float64]
    """[k], positive, summing to 1."""
    means: NDArray[np.float64]
    """[k, d]."""
    basis: NDArray[np.float64]
    """[d, d], orthonormal columns."""
    variances: NDArray[np.float64]
    """[k, d], along the columns of the basis."""

    def mean(self) -> NDArray[np.float64]:
        """Return the exact mean [d]."""
        return self.weights @ self.means

    def mean_variance(self) -> float:
        """Return the exact variance of a coordinate, averaged over the d coordinates."""
        between = ((self.means - self.mean()) ** 2).mean(axis=1)
        return float(self.weights @ (between + self.variances.mean(axis=1)))

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return n independent samples [n, d]."""
        mode = rng.choice(len(self.weights), size=n, p=self.weights)
        noise = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(self.variances)[mode]
        return self.means[mode] + noise @ self.basis.T

    def scaled(self, shift: NDArray[np.float64], factor: float) -> GaussianMixture:
        """Return the distribution of ``(x - shift) · factor``."""
        return GaussianMixture(
            weights=self.weights,
            means=(self.means - shift) * factor,
            basis=self.basis,
            variances=self.variances * factor**2,
        )


@dataclass(frozen=True)
class RawData:
    """A family's samples in raw units, float64."""

    train: NDArray[np.float64]
    """[n_train, d]."""
    held_out: NDArray[np.float64]
    """[n_held_out, d]; shares nothing with ``train``, for images not even the image under other noise."""
    modes: NDArray[np.float64] | None = None
    """[k, d], known centres of the modes: the nearest one tells a sample's mode."""
    exact: GaussianMixture | None = None
    """The distribution that the samples are from, where it is known in closed form."""
    source: str = "computed by dmdpipe"
    licence: str = "none needed"
    dequantisation: str = "none: the values are continuous"
    n_images: int | None = None
    """How many distinct images stand behind ``train``, for image families."""
    images: NDArray[np.float64] | None = None
    """[n_images, d], those images without noise."""


def draw_mixture(mixture: GaussianMixture, n_train: int, n_held_out: int, rng: np.random.Generator) -> RawData:
    """Return samples of a mixture, with its centres as the known modes if it has more than one."""
    return RawData(
        train=mixture.sample(n_train, rng),
        held_out=mixture.sample(n_held_out, rng),
        modes=mixture.means if len(mixture.means) > 1 else None,
        exact=mixture,
    )
