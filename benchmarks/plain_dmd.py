"""DMD2 as a user would write it from the paper, beside dmdpipe's own loop: how many times faster is ours?

    ./run exec python benchmarks/plain_dmd.py

The plain loop is eager PyTorch: modules, autograd, ``torch.optim.AdamW``, gradient clipping, PyTorch's own choice of
threads. Same network, batch and recipe, and the same mathematics (`tests/bench/test_training.py` feeds both the same
noise and compares the students). Timed in turns: on one thread each, and then on the whole machine, where ours trains
one student a core. What is printed are the medians, and the smallest and largest ratio of a turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGMA_DATA = 0.5


class PlainMLP(nn.Module):
    """The network of ``dmdpipe.networks.mlp``, with the same parameter names."""

    def __init__(self, dim: int, width: int, depth: int = 3, embedding: int = 32):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 5, embedding // 2, base=2.0), persistent=False)
        self.noise_embedding = nn.Linear(embedding, width)
        self.input = nn.Linear(dim, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.output = nn.Linear(width, dim)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        angles = c_noise * self.frequencies
        embedding = F.silu(self.noise_embedding(torch.cat([angles.cos(), angles.sin()], dim=1)))
        h = self.input(x)
        for block in self.blocks:
            h = h + F.silu(block(h) + embedding)
        return self.output(h)


class PlainDenoiser(nn.Module):
    """EDM preconditioning around it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = sigma**2 + SIGMA_DATA**2
        out = self.network(x / total.sqrt(), sigma.log() / 4)
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / total.sqrt() * out


class PlainDMD:
    """DMD2's loop: one generator step in five iterations, one fake-score step in each."""

    def __init__(self, student: nn.Module, teacher: nn.Module, fake: nn.Module, sigma_max: float = 80.0):
        self.student, self.teacher, self.fake, self.sigma_max = student, teacher, fake, sigma_max
        self.student_optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.01)
        self.fake_optimiser = torch.optim.AdamW(fake.parameters(), lr=5e-4, weight_decay=0.01)

    def sample(self, z: Tensor) -> Tensor:
        return self.student(self.sigma_max * z, torch.full((len(z), 1), self.sigma_max, device=z.device))

    def iterate(self, iteration: int, z: Tensor, dm: tuple[Tensor, Tensor] | None, fake: tuple[Tensor, Tensor]) -> None:
        """Make one iteration with this noise; ``dm`` (σ, ε) is there in the generator's turns only."""
        warm = min(1.0, iteration / 500)
        if dm:
            x = self.sample(z)
            sigma, noise = dm
            with torch.no_grad():
                noisy = x + sigma * noise
                real, score = self.teacher(noisy, sigma), self.fake(noisy, sigma)
                gradient = torch.nan_to_num((score - real) / (x - real).abs().mean(dim=1, keepdim=True))
            loss = 0.5 * F.mse_loss(x, (x - gradient).detach())
            step(loss, self.student_optimiser, 1e-4 * warm)
            x = x.detach()
        else:
            with torch.no_grad():
                x = self.sample(z)
        sigma, noise = fake
        weight = 1 / sigma**2 + 1 / SIGMA_DATA**2
        loss = (weight * (self.fake(x + sigma * noise, sigma) - x) ** 2).mean()
        step(loss, self.fake_optimiser, 5e-4 * warm)


def step(loss: Tensor, optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Take one step at this learning rate, the gradient's norm clipped at 10."""
    optimiser.param_groups[0]["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 10.0)
    optimiser.step()


def plain_training(width: int, dim: int, batch: int, steps: int, device: str = "cpu") -> None:
    """Train one student for this many generator steps."""
    grid = (80 ** (1 / 7) + torch.linspace(1, 0, 1000, device=device) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    networks = [PlainDenoiser(PlainMLP(dim, width)).to(device) for _ in range(3)]
    loop = PlainDMD(*networks)
    loop.teacher.requires_grad_(False)

    def draw(first: int, last: int) -> tuple[Tensor, Tensor]:
        return grid[torch.randint(first, last + 1, (batch, 1), device=device)], torch.randn(batch, dim, device=device)

    for iteration in range(5 * (steps - 1) + 1):
        dm = draw(20, 980) if iteration % 5 == 0 else None
        loop.iterate(iteration, torch.randn(batch, dim, device=device), dm, draw(0, 999))


def own_training(width: int, dim: int, batch: int, steps: int) -> None:
    """Train one student by dmdpipe, on one thread, with its snapshots, history and random streams."""
    from dmdpipe.bench.training import student_spec, untrained_teacher
    from dmdpipe.distill.loop import distil

    spec = student_spec(width, dim, batch, steps)
    distil(spec, untrained_teacher(spec))


TRAININGS = {"plain": plain_training, "dmdpipe": own_training}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--dim", type=int, default=64, help="number of coordinates (64)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100, help="generator steps of each training (100)")
    parser.add_argument("--turns", type=int, default=5, help="how often each is timed (5)")
    parser.add_argument("--train", choices=TRAININGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.dim, options.batch, options.steps)
    if options.train:
        one_process(TRAININGS[options.train], options.widths[0], *sizes)
        return
    cores = os.cpu_count() or 1
    print(f"d = {options.dim}, batch {options.batch}, {options.steps} generator steps, {options.turns} turns")
    for width in options.widths:
        one = [[seconds(name, width, 1, 1, options) for name in TRAININGS] for _ in range(options.turns)]
        say(f"width {width}, one thread", one, options.steps)
        all_cores = [
            [seconds("plain", width, 1, None, options), seconds("dmdpipe", width, cores, 1, options) / cores]
            for _ in range(options.turns)
        ]
        say(f"width {width}, {cores} cores", all_cores, options.steps)


def seconds(name: str, width: int, processes: int, threads: int | None, options: argparse.Namespace) -> float:
    """Return how long ``processes`` trainings take side by side, the slowest, without the imports and first steps.

    With ``threads`` None PyTorch chooses their number.
    """
    command = [sys.executable, __file__, "--train", name, "--widths", str(width), "--steps", str(options.steps)]
    command += ["--dim", str(options.dim), "--batch", str(options.batch)]
    variables = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if threads:
        variables |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return max(float(process.communicate()[0]) for process in running)


def one_process(train, width: int, dim: int, batch: int, steps: int) -> None:  # type: ignore[no-untyped-def]
    """Warm up, train, print the seconds."""
    train(width, dim, batch, 5)
    started = time.perf_counter()
    train(width, dim, batch, steps)
    print(time.perf_counter() - started)


def say(what: str, turns: list[list[float]], steps: int) -> None:
    """Print a line: milliseconds a generator step and a student, and how many times faster dmdpipe is."""
    plain, own = (1e3 * median(column) / steps for column in zip(*turns, strict=True))
    ratios = [turn[0] / turn[1] for turn in turns]
    print(
        f"{what:24} plain {plain:7.2f} ms, dmdpipe {own:7.2f} ms a generator step and student:"
        f" {median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
