"""A planar spiral."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import RawData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import SwissRoll

START_ANGLE, END_ANGLE = 1.5 * np.pi, 4.5 * np.pi


def draw(spec: SwissRoll, rng: np.random.Generator) -> RawData:
    """Return samples of the spiral r = φ/4.5π, φ uniform on 1.5π…4.5π, with isotropic Gaussian noise."""
    return RawData(
        train=_sample(spec.n_train, spec.noise, rng),
        held_out=_sample(spec.n_held_out, spec.noise, rng),
    )


def _sample(n: int, noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    angle = rng.uniform(START_ANGLE, END_ANGLE, n)
    radius = angle / END_ANGLE
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points + noise * rng.standard_normal((n, 2))
