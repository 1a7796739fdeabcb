"""Uniform on the dark squares of a board."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.raw import RawData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.specs.data import Checkerboard


def draw(spec: Checkerboard, rng: np.random.Generator) -> RawData:
    """Return samples on the board [0, cells]² with squares of side 1; the square at the origin is dark.

    The modes are the centres of the dark squares: every point of a square is nearest to its own centre.
    """
    column, row = np.divmod(np.arange(spec.cells**2), spec.cells)
    corners = np.stack([column, row], axis=1)[(column + row) % 2 == 0].astype(float)
    return RawData(
        train=_sample(corners, spec.n_train, rng),
        held_out=_sample(corners, spec.n_held_out, rng),
        modes=corners + 0.5,
    )


def _sample(corners: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return corners[rng.integers(len(corners), size=n)] + rng.random((n, 2))
