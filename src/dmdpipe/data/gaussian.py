"""One centred Gaussian, in any dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import GaussianMixture, RawData, draw_mixture
from dmdpipe.data.rotations import random_rotation

if TYPE_CHECKING:
    from dmdpipe.specs.data import Gaussian


def draw(spec: Gaussian, rng: np.random.Generator) -> RawData:
    """Return samples of N(0, B diag(λ) Bᵀ), λ = 1 or 1/k, B the identity or a fixed random rotation."""
    ranks = np.arange(1, spec.dim + 1)
    distribution = GaussianMixture(
        weights=np.ones(1),
        means=np.zeros((1, spec.dim)),
        basis=random_rotation(spec.dim, rng) if spec.rotated else np.eye(spec.dim),
        variances=(np.ones(spec.dim) if spec.spectrum == "isotropic" else 1 / ranks)[None, :],
    )
    return draw_mixture(distribution, spec.n_train, spec.n_held_out, rng)
