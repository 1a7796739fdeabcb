"""Gaussian modes on a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import GaussianMixture, RawData, draw_mixture

if TYPE_CHECKING:
    from dmdpipe.specs.data import Ring


def draw(spec: Ring, rng: np.random.Generator) -> RawData:
    """Return samples of equal isotropic modes, evenly spaced on the unit circle, the first at angle 0."""
    angle = 2 * np.pi * np.arange(spec.modes) / spec.modes
    mixture = GaussianMixture(
        weights=np.full(spec.modes, 1 / spec.modes),
        means=np.stack([np.cos(angle), np.sin(angle)], axis=1),
        basis=np.eye(2),
        variances=np.full((spec.modes, 2), spec.spread**2),
    )
    return draw_mixture(mixture, spec.n_train, spec.n_held_out, rng)
