"""How much longer than its forward passes sampling takes: the teacher's map by Heun's method."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from dmdpipe.bench.training import student_spec, timed, untrained_teacher
from dmdpipe.diffusion.determinism import exact_torch
from dmdpipe.diffusion.sampler import CHUNK, teacher_map


@dataclass(frozen=True)
class Overhead:
    """What was measured at one width.

    Attributes:
        width: of the network.
        forward: median milliseconds of the denoiser's calls alone, over as many rows.
        network: median milliseconds of the bare network's calls in them, without preconditioning.
        sampling: median milliseconds of the whole map.
        ratios: sampling over forward in every turn, in order.
    """

    width: int
    forward: float
    network: float
    sampling: float
    ratios: tuple[float, ...]


@torch.no_grad()
def measure(width: int, dim: int, samples: int = 4_096, steps: int = 32, turns: int = 5) -> Overhead:
    """Measure sampling on one thread beside the 2·steps − 1 calls of the denoiser that it needs; in turns.

    Args:
        width: of the network, three blocks deep.
        dim: number of coordinates d.
        samples: number of noises N, mapped in chunks of ``CHUNK`` rows.
        steps: intervals of the sampler.
        turns: how often each is timed.
    """
    exact_torch(threads=1)
    spec = student_spec(width, dim, batch=256, steps=1)
    teacher = untrained_teacher(spec)
    z = torch.randn(samples, dim)
    chunks = [chunk.clone() for chunk in z.split(CHUNK)]
    sigma = torch.ones(1, 1)
    features = teacher.conditions(sigma).features
    calls = range(2 * steps - 1)

    def sample() -> None:
        teacher_map(teacher, z, spec.noise_range, steps)

    def ask_denoiser() -> None:
        for chunk in chunks:
            for _ in calls:
                teacher(chunk, sigma)

    def ask_network() -> None:
        for chunk in chunks:
            for _ in calls:
                teacher.network(chunk, features)

    for run in (sample, ask_denoiser, ask_network):
        run()
    rows = [(timed(ask_denoiser), timed(ask_network), timed(sample)) for _ in range(turns)]
    forward, network, sampling = (1e3 * median(column) for column in zip(*rows, strict=True))
    return Overhead(width, forward, network, sampling, tuple(row[2] / row[0] for row in rows))
