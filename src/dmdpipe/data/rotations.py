"""Random rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray


def random_rotation(dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a rotation [dim, dim] from the Haar (uniform) distribution on SO(dim); float64, determinant +1.

    QR of a Gaussian matrix, with the signs that make the factorisation unique: without them the result is not
    uniform (Mezzadri, "How to generate random matrices from the classical compact groups", math-ph/0609050).
    In one dimension the only rotation is 1.
    """
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1.0
    return q


def haar_rotation(dim: int, seed: int = 0) -> NDArray[np.float64]:
    """Return Q [dim, dim], the fixed rotation of the control T∘Q, in the noise bank and in rotated starts."""
    rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, "noise", "rotation")))
    return random_rotation(dim, rng)
