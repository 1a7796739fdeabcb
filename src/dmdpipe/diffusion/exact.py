"""Exact teachers: the denoiser of a Gaussian mixture in closed form."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class ExactDenoiser:
    """D(x, σ) = E[x₀ | x₀ + σ·ε = x] for a mixture whose modes share their eigenvectors.

    Every mode j answers μ_j + C_j(C_j + σ²)⁻¹(x − μ_j); the answers are averaged with the posterior weights of the
    modes. One mode is the Gaussian case, D(x, σ) = Σ(Σ + σ²)⁻¹x.

    Args:
        tensors: ``exact.weights`` [k], ``exact.means`` [k, d], ``exact.basis`` [d, d] (eigenvectors as columns) and
            ``exact.variances`` [k, d], as the data step stores them.
        dtype: of the computation and the answer.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], dtype: torch.dtype):
        weights, means, self.basis, self.variances = (
            torch.as_tensor(tensors[f"exact.{name}"], dtype=dtype)
            for name in ("weights", "means", "basis", "variances")
        )
        self.log_weights = weights.log()
        self.means = means @ self.basis

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised x [B, d], given noisy x [B, d] and σ [B, 1]."""
        offset = (x @ self.basis)[:, None, :] - self.means
        total = self.variances + sigma[:, None, :] ** 2
        log_density = self.log_weights - 0.5 * (offset**2 / total + total.log()).sum(dim=2)
        answers = self.means + self.variances / total * offset
        return (log_density.softmax(dim=1)[:, :, None] * answers).sum(dim=1) @ self.basis.T

    def to(self, device: torch.device) -> ExactDenoiser:
        """Return the same denoiser for x and σ on a device."""
        moved = copy.copy(self)
        for name, tensor in vars(self).items():
            setattr(moved, name, tensor.to(device))
        return moved

    def covariance(self) -> Tensor:
        """Return Σ [d, d] of a one-mode mixture."""
        return self.basis @ torch.diag(self.variances[0]) @ self.basis.T
