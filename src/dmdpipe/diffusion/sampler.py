"""The teacher map T: the deterministic probability-flow ODE, solved by Heun's method."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmdpipe.diffusion.schedule import sampling_grid
from dmdpipe.networks.denoiser import Denoiser

if TYPE_CHECKING:
    from dmdpipe.specs.diffusion import NoiseRange

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]
CHUNK = 1_024  # rows


def probability_flow(denoiser: DenoiserFunction, x: Tensor, noise_range: NoiseRange, steps: int) -> Tensor:
    """Integrate dx/dσ = (x − D(x, σ))/σ from σ_max to 0 and return the end points [B, d].

    Heun's second-order method with an Euler step to σ = 0, 2·steps − 1 denoiser calls
    (arXiv 2206.00364, algorithm 1 without churn).

    Args:
        denoiser: D, called with x [B, d] and σ [1, 1].
        x: start points at σ_max, [B, d].
        noise_range: ends and exponent of the Karras grid.
        steps: grid intervals, the last one to σ = 0.
    """
    grid = sampling_grid(noise_range, steps).tolist()
    if isinstance(denoiser, Denoiser) and not torch.is_grad_enabled() and (kernel := denoiser.compiled(x)):
        levels = denoiser.conditions(torch.tensor(grid[:-1], dtype=x.dtype)[:, None])
        return kernel.flow(x, levels, [(after / now, _back(now, after)) for now, after in pairwise(grid)])
    for now, after in pairwise(grid):
        # Euler's x + (after − now)·(x − D)/now, in one pass over memory.
        euler = denoiser(x, x.new_full((1, 1), now)).lerp(x, after / now)
        if after == 0:
            return euler
        # The mean of both slopes: half of Euler's way, and half of one with the slope at its end.
        back = euler - denoiser(euler, x.new_full((1, 1), after))
        x = x.lerp(euler, 0.5).add_(back, alpha=_back(now, after))
    return x


def _back(now: float, after: float) -> float:
    """Return what the slope's change over an interval is multiplied by; no number where it ends at 0."""
    return (after - now) / (2 * after) if after else math.nan


@torch.no_grad()
def teacher_map(
    denoiser: Callable[..., Tensor], z: Tensor, noise_range: NoiseRange, steps: int, *asked: Tensor
) -> Tensor:
    """Return T(z) [N, d]: the probability-flow end points of σ_max·z, for standard normal z [N, d].

    Works through fixed chunks of rows, so memory does not grow with N.

    Args:
        denoiser: D, called with x [B, d], σ [1, 1] and, if any are asked for, the classes of the rows [B].
        z: the noises.
        noise_range: ends and exponent of the Karras grid.
        steps: grid intervals.
        asked: the class of each noise [N], if the denoiser is asked for one.
    """
    chunks = []
    for rows, *classes in zip(*(each.split(CHUNK) for each in (z, *asked)), strict=True):
        told = partial(_asked_for, denoiser, classes) if classes else denoiser
        chunks.append(probability_flow(told, noise_range.sigma_max * rows, noise_range, steps))
    return torch.cat(chunks)


def _asked_for(denoiser: Callable[..., Tensor], classes: list[Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    return denoiser(x, sigma, *classes)
