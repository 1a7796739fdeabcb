"""The particle flow Φ: every sample moves for itself along the expected DMD gradient, without a network in between.

A student's samples move only as its parameters let them. Particles x_i that start at S₀(z_i) have no such tie: x_i
falls along −E[g] of ``dmdpipe.distill.dmd``, with the score of the particles' own distribution as the fake score.
Nothing is trained, so Φ∘S₀ is what the loss alone makes of a start.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dmdpipe.distill.dmd import dm_gradient

if TYPE_CHECKING:
    from dmdpipe.diffusion.sampler import DenoiserFunction

RATE = 0.05  # of the first step, falling to 0 along a cosine; g has no unit, so this is in units of the data
GOLDEN = (math.sqrt(5) - 1) / 2

Fake = Literal["kernel", "gaussian"]


def kernel_denoiser(noisy: Tensor, sigma: float, cloud: Tensor, own: bool) -> Tensor:
    """Return E[x₀ | x₀ + σ·ε = noisy] [B, d], x₀ uniform over the points of a cloud [M, d].

    Args:
        noisy: [B, d].
        sigma: σ > 0.
        cloud: [M, d].
        own: whether row i of ``noisy`` was made from row i of the cloud. Then that point is left out (M ≥ 2): else
            every particle would be its own denoised answer at small σ, and never feel the others.
    """
    exponent = (noisy @ cloud.T - 0.5 * cloud.square().sum(dim=1)) / sigma**2
    if own:
        exponent.fill_diagonal_(-math.inf)
    return exponent.softmax(dim=1) @ cloud


def gaussian_denoiser(noisy: Tensor, sigma: float, cloud: Tensor) -> Tensor:
    """Return m + C(C + σ²)⁻¹(noisy − m) [B, d], with mean m and covariance C of a cloud [M, d]."""
    mean = cloud.mean(dim=0)
    covariance = (cloud - mean).T @ (cloud - mean) / len(cloud)
    noised = covariance + sigma**2 * torch.eye(cloud.shape[1], dtype=cloud.dtype)
    return mean + (noisy - mean) @ torch.linalg.solve(noised, covariance)


def kernel_spacing(points: Tensor) -> float:
    """Return the median distance from a point [M, d] to its √M-th nearest other one: a kernel sees nothing finer.

    Below it a particle that is apart feels one neighbour only, which drives it away, and ever faster the farther it is.
    """
    neighbours = math.ceil(math.sqrt(len(points)))
    return float(torch.cdist(points, points).kthvalue(neighbours + 1, dim=1).values.median())


@torch.no_grad()
def particle_flow(
    cloud: Tensor,
    tracers: Tensor,
    teacher: DenoiserFunction,
    levels: Tensor,
    *,
    fake: Fake,
    steps: int,
    noise: torch.Generator,
    normalise: bool = True,
) -> Tensor:
    """Return where the tracers end: Φ at points [N, d], as the cloud's flow carries them.

    The cloud stands for the distribution and makes the fake score; tracers follow it without adding to it. A step
    is x ← x − η·ḡ, with one noise level for all particles and ḡ the mean of g at x + σ·ε and x − σ·ε: where scores
    are linear, and g is not normalised, the noise cancels exactly. Levels are visited in a low-discrepancy order, η
    falls from ``RATE`` to 0.

    Args:
        cloud: start points [M, d], independent of the tracers.
        tracers: start points [N, d].
        teacher: D_teacher(x, σ), with σ [1, 1].
        levels: the noise levels [K] that are uniformly mixed.
        fake: how the cloud's score is known. ``gaussian``: from its mean and covariance, exact while its law is
            Gaussian. ``kernel``: from its points, each blurred by the noise alone.
        steps: number of Euler steps.
        noise: where ε comes from.
        normalise: as in ``dm_gradient``.
    """
    m = len(cloud)
    x = torch.cat([cloud, tracers])
    for k in range(steps):
        sigma = float(levels[int((k + 1) * GOLDEN % 1 * len(levels))])
        rate = RATE * 0.5 * (1 + math.cos(math.pi * k / steps))
        shift = sigma * torch.randn(x.shape, generator=noise, dtype=x.dtype)
        gradient = torch.zeros_like(x)
        for noisy in (x + shift, x - shift):
            if fake == "gaussian":
                answer = gaussian_denoiser(noisy, sigma, x[:m])
            else:
                parts = [kernel_denoiser(noisy[:m], sigma, x[:m], own=True)]
                parts.append(kernel_denoiser(noisy[m:], sigma, x[:m], own=False))
                answer = torch.cat(parts)
            real = teacher(noisy, x.new_full((1, 1), sigma))
            gradient += 0.5 * dm_gradient(x, real, answer, normalise=normalise)
        x = x - rate * gradient
    return x[m:]
