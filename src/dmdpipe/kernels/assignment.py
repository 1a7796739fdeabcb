"""The optimal assignment: what SciPy's ``linear_sum_assignment`` finds, several times as fast."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from dmdpipe.kernels.library import function

SIZE, MEMORY = ctypes.c_int64, ctypes.c_void_p
LANES = 8


def optimal_assignment(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the column of each row [N], each column once, at which the sum of costs [N, N] is least.

    Raises:
        ValueError: if the costs are no square matrix of finite numbers.
    """
    n = len(costs)
    if costs.shape != (n, n) or not np.isfinite(costs).all():
        raise ValueError(f"expected a square matrix of finite costs, got {costs.shape}")
    columns = -(-n // LANES) * LANES
    padded = np.full((n, columns), np.inf)
    padded[:, :n] = costs
    column_of = np.zeros(n, dtype=np.int64)
    memory = np.empty(function("assignment", "assignment_memory_size", SIZE, SIZE)(columns))
    solve = function("assignment", "assignment_solve", None, SIZE, SIZE, *[MEMORY] * 3)
    solve(n, columns, padded.ctypes.data, column_of.ctypes.data, memory.ctypes.data)
    return column_of
