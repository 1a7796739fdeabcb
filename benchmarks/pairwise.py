"""Statistics over every two samples, beside the matrix products in them: what share of the rate do they reach?

    ./run exec python benchmarks/pairwise.py
    ./run exec python benchmarks/pairwise.py --pairs 20000 --dims 64 256

On one thread, in turns. The products, in double precision, are NumPy's, in tiles that stay in the cache; printed are
medians and the smallest and largest share of a turn.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from dmdpipe.copying.distances import TILE, mean_distance
from dmdpipe.copying.memorization import nearest_distances
from dmdpipe.copying.pairing_metrics import pair_ranks


def main() -> None:
    """Print a line for each statistic and dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5_000, help="samples of either kind (5000)")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 16, 64, 256], help="numbers of coordinates")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    for dim in options.dims:
        student, teacher = np.random.default_rng(0).standard_normal((2, options.pairs, dim))
        for statistic in (mean_distance, pair_ranks, nearest_distances):
            turns = [
                (seconds(products, student, teacher), seconds(statistic, student, teacher))
                for _ in range(options.turns)
            ]
            bare, whole = (1e3 * median(column) for column in zip(*turns, strict=True))
            shares = [100 * turn[0] / turn[1] for turn in turns]
            print(
                f"d = {dim:4} {statistic.__name__:17} products {bare:6.0f} ms, all {whole:6.0f} ms:"
                f" {median(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})",
                flush=True,
            )


def products(student: np.ndarray, teacher: np.ndarray) -> None:
    """Make the products of every two samples, tile by tile, into memory that is there already."""
    out = np.empty(TILE)
    columns = [np.ascontiguousarray(teacher[start : start + TILE[1]].T) for start in range(0, len(teacher), TILE[1])]
    for first in range(0, len(student), TILE[0]):
        rows = student[first : first + TILE[0]]
        for some in columns:
            np.matmul(rows, some, out=out[: len(rows), : some.shape[1]])


def seconds(run: Callable[..., object], *points: np.ndarray) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run(*points)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
