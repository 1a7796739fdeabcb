"""The particle flow Φ: every sample moves for itself along the expected DMD gradient, without a network in between.

A student's samples move only as its parameters let them. Particles x_i that start at S₀(z_i) have no such tie: x_i
falls along −E[μ_fake − μ_real], with the score of the particles' own distribution as the fake score. Nothing is
trained, so Φ∘S₀ is what the loss alone makes of a start.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmdpipe.diffusion.sampler import DenoiserFunction

RATE = 0.05  # of the first step, falling to 0 along a cosine; in units of the data, as ḡ over its divisor has none
GOLDEN = (math.sqrt(5) - 1) / 2

Fake = Literal["kernel", "gaussian"]


def kernel_denoiser(noisy: Tensor, sigma: float, cloud: Tensor, own: Tensor | None = None) -> Tensor:
    """Return E[x₀ | x₀ + σ·ε = noisy] [B, d], x₀ uniform over the points of a cloud [M, d].

    Args:
        noisy: [B, d].
        sigma: σ > 0.
        cloud: [M, d].
        own: one point more for each row [B, d]: where it itself is, if it isn't in the cloud.
    """
    exponents = noisy @ cloud.T - 0.5 * cloud.square().sum(dim=1)
    if own is None:
        return (exponents / sigma**2).softmax(dim=1) @ cloud
    of_own = (noisy * own - 0.5 * own.square()).sum(dim=1, keepdim=True)
    weights = (torch.cat([exponents, of_own], dim=1) / sigma**2).softmax(dim=1)
    return weights[:, :-1] @ cloud + weights[:, -1:] * own


def gaussian_denoiser(noisy: Tensor, sigma: float, cloud: Tensor) -> Tensor:
    """Return m + C(C + σ²)⁻¹(noisy − m) [B, d], with mean m and covariance C of a cloud [M, d]."""
    mean = cloud.mean(dim=0)
    covariance = (cloud - mean).T @ (cloud - mean) / len(cloud)
    noised = covariance + sigma**2 * torch.eye(cloud.shape[1], dtype=cloud.dtype)
    return mean + (noisy - mean) @ torch.linalg.solve(noised, covariance)


def kernel_spacing(points: Tensor) -> float:
    """Return the median distance from a point [M, d] to its √M-th nearest other one.

    Noise of this size blurs about √M points into each other, so that a particle's own share of its kernel is small.
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
    is x ← x − η·ḡ, with one noise level for all particles and ḡ the mean of μ_fake − μ_real at x + σ·ε and x − σ·ε:
    where scores are linear the noise cancels exactly (but for its part in the divisor, which all share). Levels are
    visited in a low-discrepancy order, η falls from ``RATE`` to 0.

    Args:
        cloud: start points [M, d], independent of the tracers.
        tracers: start points [N, d].
        teacher: D_teacher(x, σ), with σ [1, 1].
        levels: the noise levels [K] that are uniformly mixed.
        fake: how the cloud's score is known. ``gaussian``: from its mean and covariance, exact while its law is
            Gaussian. ``kernel``: from its points, each blurred by the noise alone.
        steps: number of Euler steps.
        noise: where ε comes from.
        normalise: divide by the mean of |x − μ_real|, as the recipe does; here over the whole cloud, since each
            particle's own would couple its noise to its direction, and turn a small start at random.
    """
    m = len(cloud)
    x = torch.cat([cloud, tracers])
    for k in range(steps):
        sigma = float(levels[int((k + 1) * GOLDEN % 1 * len(levels))])
        rate = RATE * 0.5 * (1 + math.cos(math.pi * k / steps))
        shift = sigma * torch.randn(x.shape, generator=noise, dtype=x.dtype)
        gradient, scale = torch.zeros_like(x), x.new_zeros(())
        for noisy in (x + shift, x - shift):
            if fake == "gaussian":
                answer = gaussian_denoiser(noisy, sigma, x[:m])
            else:
                # Without a point of its own, a tracer that is apart would be driven off by its nearest neighbour.
                of_tracers = kernel_denoiser(noisy[m:], sigma, x[:m], own=x[m:])
                answer = torch.cat([kernel_denoiser(noisy[:m], sigma, x[:m]), of_tracers])
            real = teacher(noisy, x.new_full((1, 1), sigma))
            gradient += answer - real
            scale += (x - real)[:m].abs().mean()
        x = x - rate * (gradient / scale if normalise else gradient / 2)
    return x[m:]
