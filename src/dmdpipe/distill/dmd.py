"""The Distribution Matching Distillation gradient and the fake score's loss, as pure functions.

Source: DMD2 (arXiv 2405.14867), EDM branch; DMD (arXiv 2311.18828), eq. 7–8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmdpipe.diffusion.determinism import row_mean
from dmdpipe.diffusion.losses import edm_weight, weighted_squared_error
from dmdpipe.networks.denoiser import SIGMA_DATA


def dm_gradient(
    x: Tensor,
    real: Tensor,
    fake: Tensor,
    *,
    normalise: bool = True,
    normaliser_offset: float = 0.0,
    normaliser_min: float = 0.0,
) -> Tensor:
    """Return the distribution-matching gradient g = (μ_fake − μ_real) / mean|x − μ_real| for every sample.

    The published loss, ½·MSE(x, stopgrad(x − g)), is a way to say that its gradient at x is g/x.numel().

    Args:
        x: student samples [B, …], before noising.
        real: μ_real [B, …], the teacher's denoised x + σ·ε.
        fake: μ_fake [B, …], the fake score's denoised x + σ·ε.
        normalise: divide by the mean over a sample's coordinates of |x − μ_real|; without it, the bare difference.
        normaliser_offset: added to that mean (FastGen: 1e-6).
        normaliser_min: lower clamp of that mean; in low d it can come close to 0 by chance.

    Returns:
        g [B, …]; entries that are not numbers (0/0) are 0, infinite ones the largest finite value, as in DMD2.
    """
    difference = fake - real
    if normalise:
        scale = row_mean((x - real).abs().flatten(1)).view(-1, *[1] * (x.ndim - 1))
        difference = difference / (scale + normaliser_offset).clamp(min=normaliser_min)
    return torch.nan_to_num(difference)


def noisy_score(real: Tensor, sigma: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return μ_real + share·c_out(σ)·ε: a teacher's answers as if its network's output had an error of its own.

    c_out(σ) = σ·σ_data/√(σ² + σ_data²) is EDM's (arXiv 2206.00364, table 1): what the network's output is multiplied
    by, whose targets have a spread of 1 at every level. The denoised data of a level are wrong by that share of their
    spread at large σ, and of σ at small σ.

    Args:
        real: μ_real [B, d].
        sigma: its noise levels [B, 1].
        noise: ε [B, d], standard normal, independent of all else.
        share: the error's spread over that of the network's targets, ≥ 0.
    """
    c_out = sigma * SIGMA_DATA * (sigma * sigma + SIGMA_DATA**2).rsqrt()
    return torch.addcmul(real, share * c_out, noise)


def fake_score_loss(denoised: Tensor, x: Tensor, sigma: Tensor, *, weighting: str = "edm") -> tuple[Tensor, Tensor]:
    """Return the fake score's denoising loss, mean of w(σ)·(D_fake(x + σ·ε, σ) − x)², and its gradient at D_fake.

    Args:
        denoised: D_fake's answer [B, d].
        x: student samples [B, d].
        sigma: noise levels [B, 1].
        weighting: ``edm`` for w = 1/σ² + 1/σ_data² (DMD2), ``none`` for w = 1 (FastGen).
    """
    return weighted_squared_error(denoised, x, fake_score_weight(sigma, weighting))


def fake_score_weight(sigma: Tensor, weighting: str) -> Tensor | None:
    """Return w(σ) [B, 1] of the fake score's loss: 1/σ² + 1/σ_data² for ``edm``, nothing for 1."""
    return edm_weight(sigma) if weighting == "edm" else None
