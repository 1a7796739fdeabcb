"""Euclidean distances between two sets of points, block by block, so that memory does not grow with N²."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = npt.NDArray[np.float64]

BLOCK_ENTRIES = 1 << 18  # 2 MiB of float64, so that a block stays in the cache until it has been used


def as_points(points: npt.ArrayLike) -> Array:
    """Return points [N, d] in float64.

    Raises:
        ValueError: if the array is not two-dimensional, or is empty.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"expected points of shape [N, d], got {array.shape}")
    return array


def as_pairs(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    """Return two paired sets of points, [N, d] each, in float64.

    Raises:
        ValueError: if the shapes differ, or N < 2.
    """
    a, b = as_points(first), as_points(second)
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"expected two arrays of one shape [N, d] with N ≥ 2, got {a.shape} and {b.shape}")
    return a, b


def squared_distance_blocks(x: npt.ArrayLike, y: npt.ArrayLike) -> Iterator[tuple[int, Array]]:
    """Yield ``(first, block)`` with block[i, j] = ‖x[first + i] − y[j]‖², in order of ``first``.

    Args:
        x: points [N, d].
        y: points [M, d].

    The squares are expanded (one matrix product per block). The absolute error is a few rounding errors of
    the points' squared distance from their common centre: a zero may read 1e-15 of the squared spread.
    """
    a, b = as_points(x), as_points(y)
    # |x|² + |y|² − 2xy loses the digits of whatever offset the points share, so take it off first.
    centre = (a.mean(axis=0) + b.mean(axis=0)) / 2
    a, b = a - centre, b - centre
    a_norms, b_norms = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    b_transposed = -2 * b.T
    rows = max(1, BLOCK_ENTRIES // len(b))
    for first in range(0, len(a), rows):
        block = a[first : first + rows] @ b_transposed
        block += a_norms[first : first + rows, None]
        block += b_norms
        yield first, np.maximum(block, 0, out=block)


def squared_distances(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return the matrix [N, M] of squared Euclidean distances (see ``squared_distance_blocks``)."""
    return np.concatenate([block for _, block in squared_distance_blocks(x, y)])


def mean_distance(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the mean of ‖x_i − y_j‖ over all N·M pairs (i, j); in the points' units."""
    a, b = as_points(x), as_points(y)
    total = sum(float(np.sqrt(block, out=block).sum()) for _, block in squared_distance_blocks(a, b))
    return total / (len(a) * len(b))
