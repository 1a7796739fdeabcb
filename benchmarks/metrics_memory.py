"""All metrics of a student over many pairs: seconds and the peak of the memory.

    ./run exec python benchmarks/metrics_memory.py
    ./run exec python benchmarks/metrics_memory.py --pairs 5000 --dim 64

The samples are normal: T(z) = z, and a student that is partly T(z) and partly noise, at its start and at one snapshot.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from dmdpipe.copying.measure import measure
from dmdpipe.copying.pairing_metrics import ASSIGNMENT_LIMIT


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50_000, help="paired samples N (50000)")
    parser.add_argument("--dim", type=int, default=16, help="number of coordinates d (16)")
    parser.add_argument("--references", type=int, default=4, help="independent teacher sets (4)")
    options = parser.parse_args()
    n, d = options.pairs, options.dim
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, d), dtype=np.float32)

    z = draw(n)
    student = np.stack([draw(n), (0.6 * z + 0.8 * draw(n)).astype(np.float32)])
    held_out = draw(4_000)
    started = time.perf_counter()
    table = measure(
        z=z,
        teacher=z,
        student=student,
        generator_step=np.array([0, 1]),
        teacher_doubled=z + 0.01 * draw(n),
        teacher_rotated=draw(n),
        teacher_held_out=held_out,
        reference=draw(options.references, n),
        noise_held_out=held_out,
        data_held_out=draw(n),
        training=draw(4_000),
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{n} pairs, d = {d}, {options.references} teacher sets, 2 snapshots, {len(table)} values:"
        f" {seconds:.0f} s, {peak:.2f} GiB at most, assignment over the first {min(n, ASSIGNMENT_LIMIT)} pairs"
    )


if __name__ == "__main__":
    main()
