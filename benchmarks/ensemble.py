"""Many students at once, beside the published loop that trains one: how many times more students a second?

    ./run exec python benchmarks/ensemble.py
    ./run exec python benchmarks/ensemble.py --device cuda --members 128 512 --width 64

The plain loop is that of `benchmarks/plain_dmd.py`, on the same device, its noise drawn there. Ours is
`dmdpipe.distill.ensemble`: noise drawn on the CPU, so that each member is the student that it would be alone; on a GPU
captured as a graph. Timed in turns; printed are medians, and the smallest and largest ratio of a turn. Whether a GPU's
students are right, and what share of its rate they reach, is `dmdpipe bench gpu`.
"""

from __future__ import annotations

import argparse
from statistics import median

from plain_dmd import plain_training

from dmdpipe.bench.gpu import ensemble_of, timed_on, trained_on
from dmdpipe.bench.training import student_spec
from dmdpipe.diffusion.determinism import start_device


def main() -> None:
    """Print a line for each number of members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64, help="number of coordinates (64)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="generator steps that are timed (50)")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed (3)")
    options = parser.parse_args()
    sizes = (options.width, options.dim, options.batch, options.steps)
    spec = trained_on(student_spec(*sizes), device=options.device)
    # Before anything else happens on a GPU: its products read their settings once.
    device = start_device(spec, "--device")
    plain_training(options.width, options.dim, options.batch, 5, options.device)
    for members in options.members:
        together = ensemble_of(spec, members)
        together.train()
        turns = [
            (timed_on(device, lambda: plain_training(*sizes, options.device)), timed_on(device, together.train))
            for _ in range(options.turns)
        ]
        plain, own = (1e3 * median(column) / options.steps for column in zip(*turns, strict=True))
        ratios = [members * turn[0] / turn[1] for turn in turns]
        print(
            f"{members:5} members: {own:8.2f} ms a generator step of all, plain loop {plain:.2f} ms for one:"
            f" {median(ratios):.2f} × the students a second ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
