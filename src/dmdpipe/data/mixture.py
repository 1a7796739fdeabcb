"""Equal isotropic Gaussian modes in random directions, in any dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import GaussianMixture, RawData, draw_mixture

if TYPE_CHECKING:
    from dmdpipe.specs.data import Mixture


def draw(spec: Mixture, rng: np.random.Generator) -> RawData:
    """Return samples of modes with unit variance whose centres lie separation/√2 from the origin.

    Two centres are then ``separation`` standard deviations of a mode apart: in the root mean square over
    directions in any dimension, and nearly always in high dimension, where directions are all but orthogonal.
    """
    direction = rng.standard_normal((spec.modes, spec.dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    mixture = GaussianMixture(
        weights=np.full(spec.modes, 1 / spec.modes),
        means=direction * spec.separation / np.sqrt(2),
        basis=np.eye(spec.dim),
        variances=np.ones((spec.modes, spec.dim)),
    )
    return draw_mixture(mixture, spec.n_train, spec.n_held_out, rng)
