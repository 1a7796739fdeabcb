"""The optimal assignment of two sets of samples, beside SciPy's on the same costs.

    ./run exec python benchmarks/assignment.py
    ./run exec python benchmarks/assignment.py --pairs 4096 --dims 2

On one thread, in turns; printed are medians, and SciPy's time over ours with its smallest and largest. Each
row's and then each column's smallest cost is taken off first, for SciPy too, which is the faster for it.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from dmdpipe.copying.distances import squared_distances
from dmdpipe.kernels.assignment import optimal_assignment


def main() -> None:
    """Print a line for each dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000, help="samples of either kind (1000)")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 4, 16, 64], help="numbers of coordinates")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    for dim in options.dims:
        costs = squared_distances(*np.random.default_rng(0).standard_normal((2, options.pairs, dim)))
        scipys, ours = zip(*(turn(costs) for _ in range(options.turns)), strict=True)
        ratios = [one / other for one, other in zip(scipys, ours, strict=True)]
        print(
            f"d = {dim:4}  SciPy {1e3 * median(scipys):6.0f} ms, dmdpipe {1e3 * median(ours):6.0f} ms:"
            f" {median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def turn(costs: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the seconds that SciPy takes, and those that we do, after checking that they agree."""
    started = time.perf_counter()
    reduced = costs - costs.min(axis=1, keepdims=True)
    rows, theirs = linear_sum_assignment(reduced - reduced.min(axis=0))
    between = time.perf_counter()
    columns = optimal_assignment(costs)
    ended = time.perf_counter()
    np.testing.assert_allclose(costs[rows, columns].sum(), costs[rows, theirs].sum(), rtol=1e-9)
    return between - started, ended - between


if __name__ == "__main__":
    main()
