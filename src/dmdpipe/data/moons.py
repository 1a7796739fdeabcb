"""Two interleaved half circles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import RawData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Moons


def draw(spec: Moons, rng: np.random.Generator) -> RawData:
    """Return independent samples of the half circles, the upper about (0, 0), the lower about (1, ½)."""
    return RawData(
        train=_sample(spec.n_train, spec.noise, rng),
        held_out=_sample(spec.n_held_out, spec.noise, rng),
    )


def _sample(n: int, noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    angle = rng.uniform(0, np.pi, n)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    is_lower = rng.random((n, 1)) < 0.5
    points = np.where(is_lower, np.array([1.0, 0.5]) - arc, arc)
    return points + noise * rng.standard_normal((n, 2))
