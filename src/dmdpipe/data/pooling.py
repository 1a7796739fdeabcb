"""Exact area-averaging of square images to any smaller side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pooling_matrix(size: int, side: int) -> NDArray[np.float64]:
    """Return P [side, size]: P[i, j] is the share of output interval i that input pixel j covers.

    Rows sum to 1 and columns to side/size, so the mean of a signal is kept. Where side divides size this is
    the mean of each block.

    Raises:
        ValueError: unless 1 ≤ side ≤ size.
    """
    if not 1 <= side <= size:
        raise ValueError(f"cannot pool {size} pixels to {side}: it must be 1 to {size}")
    # In units of 1/side of a pixel every edge is an integer, so each weight is rounded once only.
    out_edges = np.arange(side + 1)[:, None] * size
    in_edges = np.arange(size + 1)[None, :] * side
    overlap = np.minimum(out_edges[1:], in_edges[:, 1:]) - np.maximum(out_edges[:-1], in_edges[:, :-1])
    return np.maximum(overlap, 0) / size


def area_pool(images: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return square images [n, size, size] averaged over areas to [n, side, side].

    Raises:
        ValueError: unless 1 ≤ side ≤ size.
    """
    matrix = pooling_matrix(images.shape[-1], side)
    return matrix @ images @ matrix.T
