"""Squared errors with their gradients: what denoisers and students are trained by."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdpipe.kernels.conditions import Conditions
from dmdpipe.networks.denoiser import SIGMA_DATA, Denoiser
from dmdpipe.networks.pullback import with_pullback


def weighted_squared_error(answer: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean over all entries of weight·(answer − target)², and its gradient at the answer.

    Args:
        answer: [B, d].
        target: [B, d].
        weight: [B, 1]; none for 1.
    """
    error = answer - target
    per_entry = 2 / error.numel()
    gradient = error * (per_entry if weight is None else per_entry * weight)
    return 0.5 * torch.dot(gradient.flatten(), error.flatten()), gradient


def edm_weight(sigma: Tensor) -> Tensor:
    """Return EDM's λ(σ) = (σ² + σ_data²)/(σ·σ_data)² = 1/σ² + 1/σ_data² (arXiv 2206.00364, table 1)."""
    return (sigma * sigma).reciprocal() + 1 / SIGMA_DATA**2


def denoising_loss(
    denoiser: Denoiser, noisy: Tensor, given: Conditions, clean: Tensor, weight: Tensor | None = None
) -> float | Tensor:
    """Return the mean over all entries of weight·(D(noisy) − clean)², and set the gradients at D's parameters.

    Args:
        denoiser: D; its parameters' ``grad`` must be there.
        noisy: [B, d].
        given: the conditions of its noise levels.
        clean: [B, d].
        weight: for each entry of the conditions' table [K, 1]; none for 1.
    """
    if kernel := denoiser.compiled(noisy):
        return kernel.denoising_loss(noisy, given, clean, weight)
    answer, pullback = with_pullback(denoiser, noisy, given)
    own = weight if weight is None or given.rows is None else weight.index_select(0, given.rows)
    loss, gradient = weighted_squared_error(answer, clean, own)
    pullback(gradient)
    return loss
