"""Many students at once, beside the published loop that trains one: how many times more students a second?

    ./run exec python benchmarks/ensemble.py
    ./run exec python benchmarks/ensemble.py --device cuda --members 128 512 --width 64

The plain loop is that of `benchmarks/plain_dmd.py`, on the same device, its noise drawn there. Ours is
`dmdpipe.distill.ensemble`: noise drawn on the CPU, so that each member is the student that it would be alone; on a GPU
captured as a graph. Timed in turns; printed are medians, and the smallest and largest ratio of a turn. Beside them: the
rate of the same matrix products alone (members at once), that of one large product, and the peak of the memory.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from plain_dmd import plain_training

from dmdpipe.bench.training import products_of, student_spec, untrained_teacher
from dmdpipe.distill.ensemble import Ensemble


def main() -> None:
    """Print a line for each number of members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, help=f"cuda or cpu ({found})")
    parser.add_argument("--members", type=int, nargs="+", default=[128] if found == "cuda" else [1, 2, 8])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64, help="number of coordinates (64)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="generator steps that are timed (50)")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed (3)")
    options = parser.parse_args()
    device = options.device
    if device == "cuda":
        print(torch.cuda.get_device_name(), f"one product of 8192³: {square_rate(8192, device) / 1e12:.1f} TFLOP/s")
    plain_training(options.width, options.dim, options.batch, 5, device)
    for members in options.members:
        together = ensemble(members, options)
        together.train()
        turns = []
        for _ in range(options.turns):
            plain = seconds(
                lambda: plain_training(options.width, options.dim, options.batch, options.steps, device), device
            )
            turns.append((plain / options.steps, seconds(together.train, device) / options.steps))
        say(members, turns, options)


def ensemble(members: int, options: argparse.Namespace) -> Ensemble:
    """Return students that differ in their seeds."""
    spec = student_spec(options.width, options.dim, options.batch, options.steps)
    specs = [spec.model_copy(update={"seed": seed}) for seed in range(members)]
    return Ensemble(specs, [untrained_teacher(spec)] * members, options.device, graph=options.device == "cuda")


def say(members: int, turns: list[tuple[float, float]], options: argparse.Namespace) -> None:
    """Print the line of one number of members."""
    plain, own = (1e3 * median(column) for column in zip(*turns, strict=True))
    ratios = [members * turn[0] / turn[1] for turn in turns]
    spec = student_spec(options.width, options.dim, options.batch, options.steps)
    operations = members * products_of(spec)[1]
    line = f"{members:5} members: {own:8.2f} ms a generator step of all, plain loop {plain:.2f} ms for one:"
    line += f" {median(ratios):.2f} × the students a second ({min(ratios):.2f} to {max(ratios):.2f});"
    share = operations / (own / 1e3) / batched_rate(members, options)
    line += f" {100 * share:.0f} % of the rate of its matrix products"
    if options.device == "cuda":
        line += f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
    print(line, flush=True)


def batched_rate(members: int, options: argparse.Namespace) -> float:
    """Return the operations a second of the members' products of a hidden layer."""
    x = torch.randn(members, options.batch, options.width, device=options.device)
    weight = torch.randn(members, options.width, options.width, device=options.device)
    out = torch.empty_like(x)
    return rate(lambda: torch.bmm(x, weight, out=out), 2 * x.numel() * options.width, options.device)


def square_rate(size: int, device: str) -> float:
    """Return the operations a second of one product of square matrices."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return rate(lambda: a @ b, 2 * size**3, device)


def rate(run, operations: float, device: str) -> float:  # type: ignore[no-untyped-def]
    """Return operations a second, the best of a few turns."""
    run()
    return operations * 20 / min(seconds(lambda: [run() for _ in range(20)], device) for _ in range(5))


def seconds(run, device: str) -> float:  # type: ignore[no-untyped-def]
    """Return how long a call takes, until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
