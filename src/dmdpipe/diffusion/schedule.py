"""Noise levels σ of training and sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmdpipe.specs.diffusion import NoiseRange


def karras_grid(noise_range: NoiseRange, size: int) -> Tensor:
    """Return the ascending Karras noise levels σ_0 = σ_min … σ_{size−1} = σ_max, float64 [size].

    Source: arXiv 2206.00364, eq. 5, in the order in which DMD2 indexes it (small σ first).
    """
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    low = noise_range.sigma_min ** (1 / noise_range.rho)
    high = noise_range.sigma_max ** (1 / noise_range.rho)
    return (low + ramp * (high - low)) ** noise_range.rho


def student_levels(noise_range: NoiseRange, steps: int) -> list[float]:
    """Return the descending levels at which a student of ``steps`` steps answers: σ_max and evenly spaced ones below.

    Evenly spaced on the Karras grid, as DMD2 spaces its timesteps (999, 749, 499, 249 of 1,000; arXiv 2405.14867,
    section 4.4).
    """
    return [noise_range.sigma_max, *karras_grid(noise_range, steps + 1).flip(0)[1:-1].tolist()]


def sampling_grid(noise_range: NoiseRange, steps: int) -> Tensor:
    """Return the descending levels of a sampler with ``steps`` intervals: σ_max … σ_min, 0; float64 [steps + 1].

    With one interval σ_max and 0.
    """
    falling = karras_grid(noise_range, max(steps, 2)).flip(0)[:steps]
    return torch.cat([falling, torch.zeros(1, dtype=torch.float64)])
