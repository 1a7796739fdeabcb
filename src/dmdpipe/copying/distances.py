"""Euclidean distances between two sets of points, tile by tile, so that memory does not grow with N²."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dmdpipe.kernels.distances import sum_of_distances

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = npt.NDArray[np.float64]

TILE = (128, 512)  # half a MiB of float64, so that a tile stays in the cache until it has been used


def as_points(points: npt.ArrayLike) -> Array:
    """Return points [N, d] in float64, row by row in memory, as the kernels in C read them.

    Raises:
        ValueError: if the array is not two-dimensional, or is empty.
    """
    array = np.asarray(points, dtype=np.float64, order="C")
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


def centred(x: Array, y: Array) -> tuple[Array, Array]:
    """Return both sets of points less the middle of their means: ‖x‖² + ‖y‖² − 2·x·y loses the digits of an offset."""
    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2
    return x - centre, y - centre


def squared_distance_tiles(x: npt.ArrayLike, y: npt.ArrayLike) -> Iterator[tuple[slice, slice, Array]]:
    """Yield ``(rows, columns, tile)`` with tile[i, j] = ‖x[rows][i] − y[columns][j]‖², each pair of points once.

    All columns of some rows follow one another; a tile may be overwritten.

    Args:
        x: points [N, d].
        y: points [M, d].

    The squares are expanded, and all three terms are one matrix product per tile: [x, ‖x‖², 1]·[−2y, 1, ‖y‖²]. The
    absolute error is a few rounding errors of the points' squared distance from their common centre: a zero may read
    1e-15 of the squared spread.
    """
    a, b = as_points(x), as_points(y)
    a, b = centred(a, b)
    a_norms, b_norms = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    left = np.column_stack([a, a_norms, np.ones(len(a))])
    expanded = np.column_stack([-2 * b, np.ones(len(b)), b_norms])
    across = [slice(start, start + TILE[1]) for start in range(0, len(b), TILE[1])]
    right = [np.ascontiguousarray(expanded[columns].T) for columns in across]
    for first in range(0, len(a), TILE[0]):
        rows = slice(first, first + TILE[0])
        for columns, some in zip(across, right, strict=True):
            tile = left[rows] @ some
            # Where 0 is rounded to less, its size is as near.
            yield rows, columns, np.abs(tile, out=tile)


def squared_distances(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Return the matrix [N, M] of squared Euclidean distances (see ``squared_distance_tiles``)."""
    a, b = as_points(x), as_points(y)
    matrix = np.empty((len(a), len(b)))
    for rows, columns, tile in squared_distance_tiles(a, b):
        matrix[rows, columns] = tile
    return matrix


def mean_distance(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return the mean of ‖x_i − y_j‖ over all N·M pairs (i, j); in the points' units."""
    a, b = as_points(x), as_points(y)
    return sum_of_distances(*centred(a, b)) / (len(a) * len(b))
