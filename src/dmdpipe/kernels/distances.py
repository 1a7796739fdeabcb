"""What is asked of the distances between every two points, none of which is kept: sums, counts, the nearest."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from dmdpipe.kernels.library import function

Points = npt.NDArray[np.float64]
COLUMNS = 8  # points in a pack of distances.c
SIZE, MEMORY = ctypes.c_int64, ctypes.c_void_p


def sum_of_distances(x: Points, y: Points) -> float:
    """Return Σ_ij ‖x_i − y_j‖ for points x [N, d] and y [M, d], contiguous and near the origin of both."""
    packed = _packed(y)
    add = function("distances", "distances_sum", ctypes.c_double, SIZE, SIZE, SIZE, MEMORY, MEMORY)
    total: float = add(len(x), len(y), x.shape[1], x.ctypes.data, packed.ctypes.data)
    return total


def count_within(x: Points, y: Points, near: Points, far: Points) -> tuple[npt.NDArray[np.int64], ...]:
    """Return, for every x_i, how many y_j have ‖x_i − y_j‖² < near_i, and how many have ≤ far_i, [N] each.

    Args:
        x: points [N, d], contiguous, near the origin, as are the next.
        y: points [M, d].
        near: squared distances [N].
        far: squared distances [N].
    """
    packed = _packed(y)
    nearer, not_farther = (np.zeros((len(x), COLUMNS), dtype=np.int64) for _ in range(2))
    count = function("distances", "distances_count", None, SIZE, SIZE, SIZE, *[MEMORY] * 6)
    arrays = (x, packed, near, far, nearer, not_farther)
    count(len(x), len(y), x.shape[1], *[array.ctypes.data for array in arrays])
    return nearer.sum(axis=1), not_farther.sum(axis=1)


def two_nearest(x: Points, y: Points) -> Points:
    """Return, for every x_i, its smallest and second smallest squared distance to any y_j [N, 2]; infinite without one.

    Args:
        x: points [N, d], contiguous, near the origin, as are the next.
        y: points [M, d].
    """
    packed, nearest = _packed(y), np.full((len(x), 2 * COLUMNS), np.inf)
    find = function("distances", "distances_nearest", None, SIZE, SIZE, SIZE, *[MEMORY] * 3)
    find(len(x), len(y), x.shape[1], x.ctypes.data, packed.ctypes.data, nearest.ctypes.data)
    return np.sort(nearest, axis=1)[:, :2]


def _packed(y: Points) -> Points:
    packed: Points = np.empty(function("distances", "distances_packed_size", SIZE, SIZE, SIZE)(*y.shape))
    function("distances", "distances_pack", None, SIZE, SIZE, MEMORY, MEMORY)(
        *y.shape, y.ctypes.data, packed.ctypes.data
    )
    return packed
