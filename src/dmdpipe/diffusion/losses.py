"""Squared errors with their gradients: what denoisers and students are trained by."""

from __future__ import annotations

import torch
from torch import Tensor

from dmdpipe.networks.denoiser import SIGMA_DATA


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
